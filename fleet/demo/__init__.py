"""The whole loop on one machine: what `fleet demo` starts, shows and takes away again."""
