"""Settings for every test and every notebook that pytest runs."""

import os

# Progress bars are for readers. The notebooks' kernels inherit this.
os.environ["TQDM_DISABLE"] = "1"
