"""Faults that cross rooms: kills, full disks, damaged files, hostile names, texts and command lines."""
