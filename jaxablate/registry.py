"""Named parts that users can add to: suites, circuit methods, autoencoder architectures, gates, regularisers.

A part is added from this package by its line in the registry, from another package by a call of `Registry.register` or
by an entry point of the registry's group, which is imported when the registry is first read:

    [project.entry-points."jaxablate.suites"]
    my_suite = "my_package.suites:SUITE"
"""

import difflib
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from jaxablate.errors import ConfigError


class Named(Protocol):
    """What a registry holds: any value with a name."""

    @property
    def name(self) -> str: ...


Part = TypeVar("Part", bound=Named)


class Registry(Generic[Part]):
    """Parts of one kind (``suite``) by name, in the order in which they were added.

    >>> import types
    >>> methods = Registry("method", [types.SimpleNamespace(name="eap")])
    >>> methods.names(), methods["eap"].name
    (('eap',), 'eap')
    """

    def __init__(self, kind: str, parts: Sequence[Part] = ()):
        self.kind = kind
        self.group = f"jaxablate.{kind.replace(' ', '_')}s"
        self._parts: dict[str, Part] = {}
        self._searched = False
        for part in parts:
            self.register(part)

    def register(self, part: Part) -> Part:
        """Adds a part and returns it.

        Raises:
          ConfigError: another part has its name.
        """
        if self._parts.setdefault(part.name, part) is not part:
            raise ConfigError(f"{self.kind} {part.name!r} is registered already; choose another name")
        return part

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._all())

    def __getitem__(self, name: str) -> Part:
        """The part of a name.

        Raises:
          ConfigError: there is none; the nearest name and all names are told.
        """
        parts = self._all()
        if name not in parts:
            near = difflib.get_close_matches(name, parts, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown {self.kind} {name!r}; {hint}There are {', '.join(parts)}")
        return parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[Part]:
        return iter(self._all().values())

    def _all(self) -> dict[str, Part]:
        if not self._searched:
            self._searched = True
            for entry in importlib.metadata.entry_points(group=self.group):
                try:
                    self.register(entry.load())
                except Exception as error:  # whatever a stranger's module raises is told in one line
                    package = entry.dist.name if entry.dist else "a package"
                    raise ConfigError(f"{self.kind} {entry.name!r} of {package} cannot be loaded ({entry.value}: "
                                      f"{type(error).__name__}: {error}); mend or uninstall it") from error
        return self._parts
