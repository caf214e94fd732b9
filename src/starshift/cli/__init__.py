# SPDX-License-Identifier: Apache-2.0
"""The command line: one subcommand a file, found by its name. A file parses and prints; the work is in the library."""
