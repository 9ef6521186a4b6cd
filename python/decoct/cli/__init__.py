"""Commands of the `decoct` program, one module each; every module has `register(subparsers)`."""
