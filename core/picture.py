"""Pictures as files: matplotlib without a window, loaded when one is drawn."""


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rc("text", parse_math=False)  # $ in a name begins no formula
    from matplotlib import pyplot as plt

    return plt
