# SPDX-License-Identifier: Apache-2.0
"""Guidance: combining two predictions of a level into one. Each method has its own module.

A new method needs a module with a subclass of `method.GuidanceMethod`, and a name in `registry`.
"""
