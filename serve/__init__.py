"""The service: an autoscaled encoder and index shards behind one HTTP interface.

start           starts the service here, and stops it when what was asked is answered
taken           refusals of a start on a port, name or route that is taken
app             binds the deployments of a run's index
api             all routes, errors and the OpenAPI description as one application
service         what the routes do, apart from HTTP and from Ray
backend         the calls that the service makes to encoder and index
incoming        a request as the routes know it: path, method, key; requests in progress
guard           keys, size and deadline before every route; metrics and log behind it
request_head    limits on the head of a request: size, a body where none belongs, id, host names
limited_body    a body up to its limit and until the deadline
keys            API keys and the role that each route asks for
key_scopes      aliases, tasks and documents that a key may use
scoped_service  the service as the holder of one key may use it
audit           a line for every write, call of an admin, and refusal by role or scope
new_key         makes a key and its line in the file of keys
load_shedding   refusals under overload, before a body is read
request_body    bodies counted before they are parsed
http_errors     errors in the shape of the API that was asked
client          a typed client
ask             one question from the command line
openapi         writes docs/openapi.json
ports           which ports are open, and what they answer to a stranger
routes/         the routes
schemas/        requests and answers on the wire
deployments/    the Ray Serve deployments
versions/       versions of the index, and writes replayed from one to the next
"""
