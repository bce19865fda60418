"""How Sphinx builds the documentation; `nox -s docs` runs it."""

from importlib.metadata import version as installed_version

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = "gz_trio"
author = "The gz_trio authors"
copyright = "The gz_trio authors"
release = version = installed_version("gz-trio")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
]
html_theme = "furo"
html_title = f"gz_trio {version}"
html_static_path = ["_static"]
exclude_patterns = ["_build"]

# Docstrings write `code` with one backtick, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
# sphinxcontrib-trio marks methods as `async with` only in this implementation of autodoc.
autodoc_use_legacy_class_based = True
myst_heading_anchors = 3

# Names of our own must resolve. Those of Trio and the standard library would need their inventories
# from the network, and a build must not depend on that.
nitpick_ignore_regex = [(r"py:.*", r"(?!gz_trio).*")]
# In signatures of public names, but not public themselves.
nitpick_ignore = [
    ("py:class", "gz_trio._chat.streaming.ReplyBlock"),  # for `async with`; gives a `Reply`
    ("py:class", "gz_trio._chat.reply.ReplyEvents"),
    ("py:class", "gz_trio._protocol.errors.RetryHints"),
    ("py:class", "gz_trio._chat.http_client.HttpxClients"),
    ("py:class", "gz_trio._chat.http_client.ClientT"),
    ("py:class", "gz_trio._transport.httpx_transport.HttpxModule"),
    ("py:class", "gz_trio._transport.httpx_transport._TransportT"),
    ("py:class", "gz_trio.testing._gateway._ClientT"),
    ("py:class", "gz_trio.testing._memory.HttpxModule"),
]


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: TextElement
) -> Element | None:
    """Link a name that a signature gives by its private module to the public name's entry."""
    target: str = node["reftarget"]
    if not target.startswith("gz_trio._"):
        return None
    return env.domains["py"].resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        node["reftype"],
        "gz_trio." + target.rpartition(".")[2],
        node,
        contnode,
    )


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve_public_name)
