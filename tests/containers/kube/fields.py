"""Manifests in which every field is either used or listed as left out.

A field that is silently ignored would not be tested. Each access is therefore recorded, and `unused` lists the fields
that were never read.
"""

import yaml


class ManifestError(Exception):
    """A manifest requests an unsupported feature."""


class Fields:
    """A mapping of a manifest. Records which of its fields were used."""

    def __init__(self, value, path, used):
        if not isinstance(value, dict):
            raise ManifestError(f"{path}: expected a mapping, found {value!r}")
        self.value, self.path, self.used = value, path, used

    def __contains__(self, key):
        return key in self.value

    def get(self, key, default=None):
        """A scalar, a list of scalars or a mapping of scalars. It counts as used with all its content."""
        if key not in self.value:
            return default
        self._use(self.value[key], f"{self.path}.{key}")
        return self.value[key]

    def need(self, key):
        if key not in self.value:
            raise ManifestError(f"{self.path}.{key} is missing")
        return self.get(key)

    def at(self, key):
        """A mapping below this one, or an empty mapping if the key is missing."""
        value = self.value.get(key, {})
        if value == {}:
            self.used.add(f"{self.path}.{key}")
        return Fields(value, f"{self.path}.{key}", self.used)

    def each(self, key):
        """The mappings of a list below this one."""
        items = self.value.get(key, [])
        return [Fields(item, f"{self.path}.{key}[{index}]", self.used) for index, item in enumerate(items)]

    def _use(self, value, path):
        self.used.update(_leaves(value, path))


class Manifests:
    """The documents of several files, by kind and name."""

    def __init__(self, texts):
        self.used = set()
        self.documents = []
        for text in texts:
            for document in yaml.safe_load_all(text):
                if document is not None:
                    self.add(document)

    def add(self, document):
        path = f"{document['kind']}/{document['metadata']['name']}"
        fields = Fields(document, path, self.used)
        for name in ("apiVersion", "kind"):
            fields.need(name)
        metadata = fields.at("metadata")
        for name in ("name", "labels"):
            metadata.get(name)
        self.documents = [kept for kept in self.documents if kept.path != path]
        self.documents.append(fields)
        return fields

    def of_kind(self, kind):
        return [document for document in self.documents if document.value["kind"] == kind]

    def find(self, kind, name):
        found = [d for d in self.of_kind(kind) if d.value["metadata"]["name"] == name]
        return found[0] if found else None

    def unused(self, left_out):
        """The unused fields that are not in `left_out`, which maps paths without list indices to reasons."""
        missing = []
        for document in self.documents:
            for path in _leaves(document.value, document.path):
                if path in self.used:
                    continue
                plain = _without_indices(path).split(".", 1)[1]
                kind = document.value["kind"]
                if not any(f"{kind}.{plain}".startswith(prefix) for prefix in left_out):
                    missing.append(path)
        return missing


def _leaves(value, path):
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, f"{path}[{index}]")
    else:
        yield path


def _without_indices(path):
    out, depth = "", 0
    for char in path:
        depth += char == "["
        if depth == 0:
            out += char
        depth -= char == "]"
    return out
