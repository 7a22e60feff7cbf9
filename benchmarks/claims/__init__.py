"""The papers' claims: measures what no suite does of a sweep's runs, and makes the tables of docs/claims.md."""
