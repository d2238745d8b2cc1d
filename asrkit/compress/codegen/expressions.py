"""What is computed element by element: names, how they read in C on vectors, and the C that needs to be there."""

from asrkit.compress.codegen.graph import Expression

FUNCTIONS = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "max": "v_max({0}, {1})",
    "min": "v_min({0}, {1})",
    "exp": "v_exp({0})",
    "log": "v_log({0})",
    "sqrt": "v_sqrt({0})",
    "sigmoid": "v_sigmoid({0})",
    "silu": "v_silu({0})",
    "tanh": "v_tanh({0})",
    "erf": "v_erf({0})",
    "ge": "v_truth({0} >= {1})",
    "gt": "v_truth({0} > {1})",
    "le": "v_truth({0} <= {1})",
    "lt": "v_truth({0} < {1})",
    "eq": "v_truth({0} == {1})",
    "ne": "v_truth({0} != {1})",
    "where": "v_where({0}, {1}, {2})",
}


def c_number(value: float) -> str:
    return f"{float(value).hex()}f" if abs(value) != float("inf") else ("-" * (value < 0) + "3.4e38f")


def c_expression(expression: Expression, inputs: list[str]) -> str:
    """Return an expression as C of type vf, `inputs` being C expressions of that type."""
    if not isinstance(expression, tuple):
        return f"v_splat({c_number(expression)})"
    if expression[0] == "x":
        return inputs[expression[1]]
    return FUNCTIONS[expression[0]].format(*(c_expression(part, inputs) for part in expression[1:]))
