"""The service: an autoscaled encoder and index shards behind one HTTP interface.

start           starts the service here, and stops it when what was asked is answered
ray_switches    the switches of Ray Serve for a Ray that is started here
taken           refusals of a start: a port, name or route that is taken, no index
app             binds the deployments of a run's index
api             all routes, errors and the OpenAPI description as one application
service         what the routes do, apart from HTTP and from Ray
large_work      what is large, in one thread beside the event loop
grouping        groups of hits, by the values of a field
reranking       the order that a reranker gives to hits and documents
search_limits   what searches may ask for together
cursor          where the next page of a list begins
backend         the calls that the service makes to encoder and index
replica_gpus    the GPUs of the replicas, tried before anything is deployed
new_key         makes a key and its line in the file of keys
http_errors     errors in the shape of the API that was asked
client          a typed client
ask             one question from the command line
openapi         writes docs/openapi.json
integrations/   the service for agents and in frameworks
ports           which ports are open, and what they answer to a stranger
middleware/     what a request passes before the routes
access/         who may use what
routes/         the routes
schemas/        requests and answers on the wire
deployments/    the Ray Serve deployments
versions/       versions of the index, and vectors that one lacks of what was written
"""

import sys

from embedder.interrupt import end_at_interrupt

# `python -m` is about to run a command of this package: from the first moment, since imports take seconds.
if sys.argv[0] == "-m":
    end_at_interrupt("interrupted; run the same command again")
