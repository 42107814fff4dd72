"""Who may do what: keys, their scopes and limits, and how often a stranger may guess."""
