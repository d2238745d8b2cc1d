"""A compiler from networks to C that does nothing for weights that are zero.

`compile_network` writes a folder with C, weights and a shared library; `load_network` runs it from Python.
"""

from asrkit.compress.codegen.artefact import compile_network
from asrkit.compress.codegen.runtime import Network, load_network
from asrkit.compress.codegen.target import TARGETS, Target, native_target, runs_here

__all__ = ["TARGETS", "Network", "Target", "compile_network", "load_network", "native_target", "runs_here"]
