"""The subcommands: arguments in, one call each; heavy imports happen inside, so that --help is instant."""
