# SPDX-License-Identifier: Apache-2.0
"""How two predictions of a level become one: a file a method, and the model's calls.

A new method is a file with a class of `method.GuidanceMethod`, and its name in `registry`.
"""
