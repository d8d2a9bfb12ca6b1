"""What a request passes before the routes, the outermost first.

load_shedding   refusals under overload, before a body is read
incoming        a request as the routes know it: path, method, key; requests in progress
guard           keys, size and deadline before every route; metrics and log behind it
request_head    limits on the head of a request: size, a body where none belongs, id, host names
limited_body    a body up to its limit and until the deadline
request_body    bodies counted before they are parsed
"""
