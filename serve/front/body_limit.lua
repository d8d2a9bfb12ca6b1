-- Filter `lua.body-limit BYTES`: ends a request whose body exceeds so many bytes.
-- HAProxy has a rule for a Content-Length, but none for bodies that are sent in chunks without one.
local BodyLimit = {id = "body limit", flags = filter.FLT_CFG_FL_HTX}
BodyLimit.__index = BodyLimit

function BodyLimit:new()
  -- `self` is what was made below for a line of the configuration; what is returned here belongs to one request.
  return setmetatable({received = 0, most = self.most}, BodyLimit)
end

function BodyLimit:start_analyze(txn, channel)
  if not channel:is_resp() then
    filter.register_data_filter(self, channel)
  end
end

function BodyLimit:http_payload(txn, message)
  self.received = self.received + message:input()
  if self.received > self.most then
    -- An error is the one way for a filter to end a request: status 400, a line on stderr, and the service sees a
    -- client that left.
    error("a body exceeds " .. self.most .. " bytes", 0)
  end
end

core.register_filter("body-limit", BodyLimit, function(line, arguments)
  line.most = tonumber(arguments[1])
  return line
end)
