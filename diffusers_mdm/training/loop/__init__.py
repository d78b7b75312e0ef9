# SPDX-License-Identifier: Apache-2.0
"""What happens, in order: stages, steps, and the end of a run."""
