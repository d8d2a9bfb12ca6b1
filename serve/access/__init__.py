"""Who may use what: keys, their scopes, and the audit.

keys            API keys and the role that each route asks for
key_scopes      aliases, tasks and documents that a key may use
owner           whose turn a request takes
scoped_service  the service as the holder of one key may use it
audit           a line for every write, call of an admin, and refusal by role or scope
"""
