-- Wireshark dissector for the protocol of GT Store (PROTOCOL.md).
--
-- The part between "generated" and "end" is written by python -m gtstore.wire.describe from the table in
-- gtstore/wire/messages.py, so that a new message is dissected without another line here; the rest is by hand.
--
--   wireshark -X lua_script:gtstore.lua        or put it into Wireshark's folder of Lua plugins
--
-- A field's filter is gtstore. and its name: gtstore.key, gtstore.epoch. The fields of the header and of
-- records have the record's name between: gtstore.header.request_id, gtstore.entry.flags, gtstore.row.partition;
-- those of an ERROR have error: gtstore.error.partition. Besides there are
--
--   gtstore.malformed     the bytes do not fit the protocol; a node would refuse them
--   gtstore.unknown       a kind, code, flag or value that is not in the table
--   gtstore.response_in, gtstore.response_to, gtstore.response_time
--
-- Frames are recognised on the ports of the preferences, and on all others by how they begin.

-- generated: tables

local MAGIC = 0xc7
local VERSION = 1
local HEADER_SIZE = 12
local BODY_SIZE_MAX = 16778228
local PORTS = "9001,10001-10100"
local ERROR = 0xff

local ENTRY_FLAGS = {
  {bit = 1, name = "committed"},
  {bit = 2, name = "ordered"},
  {bit = 4, name = "tombstone"},
  {bit = 8, name = "expires"},
}

local RECORDS = {
  header = {
    {name = "magic", filter = "gtstore.header.magic", type = "number", size = 1},
    {name = "version", filter = "gtstore.header.version", type = "number", size = 1},
    {name = "kind", filter = "gtstore.header.kind", type = "number", size = 1},
    {name = "flags", filter = "gtstore.header.flags", type = "number", size = 1},
    {name = "request_id", filter = "gtstore.header.request_id", type = "number", size = 4},
    {name = "length", filter = "gtstore.header.length", type = "number", size = 4},
  },
  entry = {
    {name = "time", filter = "gtstore.entry.time", type = "time", size = 8},
    {name = "client", filter = "gtstore.entry.client", type = "number", size = 8},
    {name = "counter", filter = "gtstore.entry.counter", type = "number", size = 4},
    {name = "flags", filter = "gtstore.entry.flags", type = "number", size = 1, bits = true},
    {name = "expiry", filter = "gtstore.entry.expiry", type = "time", size = 8, if_flag = 8},
    {name = "value", filter = "gtstore.entry.value", type = "bytes", min = 0},
  },
  owner = {
    {name = "node", filter = "gtstore.owner.node", type = "number", size = 2},
    {name = "incarnation", filter = "gtstore.owner.incarnation", type = "number", size = 4},
    {name = "join_epoch", filter = "gtstore.owner.join_epoch", type = "epoch", size = 8},
    {name = "in_sync", filter = "gtstore.owner.in_sync", type = "number", size = 1, names = {[0] = "syncing", [1] = "in sync"}},
  },
  row = {
    {name = "partition", filter = "gtstore.row.partition", type = "number", size = 4},
    {name = "list_epoch", filter = "gtstore.row.list_epoch", type = "epoch", size = 8},
    {name = "primary_epoch", filter = "gtstore.row.primary_epoch", type = "epoch", size = 8},
    {name = "owners", filter = "gtstore.row.owners", type = "array", length = 1, record = "owner"},
  },
  member = {
    {name = "node", filter = "gtstore.member.node", type = "number", size = 2},
    {name = "state", filter = "gtstore.member.state", type = "number", size = 1, names = {[1] = "alive", [2] = "suspect", [3] = "dead", [4] = "left"}},
    {name = "incarnation", filter = "gtstore.member.incarnation", type = "number", size = 4},
    {name = "pid", filter = "gtstore.member.pid", type = "number", size = 4},
    {name = "port", filter = "gtstore.member.port", type = "number", size = 2},
    {name = "host", filter = "gtstore.member.host", type = "text", length = 2, min = 0, max = 1000},
  },
}

local MESSAGES = {
  [0x01] = {name = "PING", fields = {
  }},
  [0x81] = {name = "PONG", fields = {
    {name = "role", filter = "gtstore.role", type = "number", size = 1, names = {[1] = "manager", [2] = "node"}},
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "incarnation", filter = "gtstore.incarnation", type = "number", size = 4},
    {name = "pid", filter = "gtstore.pid", type = "number", size = 4},
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "time", filter = "gtstore.time", type = "time", size = 8},
    {name = "entries", filter = "gtstore.entries", type = "number", size = 8},
    {name = "bytes", filter = "gtstore.bytes", type = "number", size = 8},
  }},
  [0x02] = {name = "CLUSTER_INFO", fields = {
  }},
  [0x82] = {name = "CLUSTER", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "nodes", filter = "gtstore.nodes", type = "number", size = 2},
    {name = "replicas", filter = "gtstore.replicas", type = "number", size = 2},
    {name = "hash", filter = "gtstore.hash", type = "number", size = 1, names = {[1] = "additive", [2] = "crc16"}},
    {name = "partitions", filter = "gtstore.partitions", type = "number", size = 4},
    {name = "time", filter = "gtstore.time", type = "time", size = 8},
    {name = "members", filter = "gtstore.members", type = "array", length = 2, record = "member"},
  }},
  [0x03] = {name = "GET_MAP", fields = {
    {name = "since", filter = "gtstore.since", type = "epoch", size = 8},
  }},
  [0x83] = {name = "MAP", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "rows", filter = "gtstore.rows", type = "array", length = 4, record = "row"},
  }},
  [0x04] = {name = "KEY_NODES", fields = {
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
  }},
  [0x05] = {name = "NEXT_PRIMARY", fields = {
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
  }},
  [0x84] = {name = "OWNERS", fields = {
    {name = "row", filter = "gtstore.row", type = "record", record = "row"},
    {name = "members", filter = "gtstore.members", type = "array", length = 2, record = "member"},
  }},
  [0x06] = {name = "REGISTER", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "incarnation", filter = "gtstore.incarnation", type = "number", size = 4},
    {name = "pid", filter = "gtstore.pid", type = "number", size = 4},
    {name = "port", filter = "gtstore.port", type = "number", size = 2},
  }},
  [0x86] = {name = "REGISTERED", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "nodes", filter = "gtstore.nodes", type = "number", size = 2},
    {name = "replicas", filter = "gtstore.replicas", type = "number", size = 2},
    {name = "hash", filter = "gtstore.hash", type = "number", size = 1, names = {[1] = "additive", [2] = "crc16"}},
  }},
  [0x10] = {name = "GET", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "partition", filter = "gtstore.partition", type = "number", size = 4},
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
  }},
  [0x90] = {name = "ENTRY", fields = {
    {name = "entry", filter = "gtstore.entry", type = "record", record = "entry"},
  }},
  [0x91] = {name = "NOT_FOUND", fields = {
  }},
  [0x11] = {name = "WRITE", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "partition", filter = "gtstore.partition", type = "number", size = 4},
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
    {name = "entry", filter = "gtstore.entry", type = "record", record = "entry"},
  }},
  [0x92] = {name = "ACK", fields = {
  }},
  [0x93] = {name = "SUPERSEDED", fields = {
    {name = "version", filter = "gtstore.version", type = "version", size = 16},
  }},
  [0x12] = {name = "COMMIT", fields = {
    {name = "partition", filter = "gtstore.partition", type = "number", size = 4},
    {name = "version", filter = "gtstore.version", type = "version", size = 16},
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
  }},
  [0x13] = {name = "EXECUTE", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "partition", filter = "gtstore.partition", type = "number", size = 4},
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
    {name = "operation", filter = "gtstore.operation", type = "number", size = 1, names = {[1] = "append", [2] = "increment", [3] = "put if absent", [4] = "put if value", [5] = "put if version", [6] = "touch"}},
    {name = "expected", filter = "gtstore.expected", type = "bytes", length = 4, min = 0, max = 16777216},
    {name = "entry", filter = "gtstore.entry", type = "record", record = "entry"},
  }},
  [0x94] = {name = "EXECUTED", fields = {
    {name = "entry", filter = "gtstore.entry", type = "record", record = "entry"},
  }},
  [0x95] = {name = "FAILED", fields = {
    {name = "reason", filter = "gtstore.reason", type = "number", size = 1, names = {[1] = "the comparison failed", [2] = "the value would be too long", [3] = "the value is no number", [4] = "the number would be too large"}},
    {name = "entry", filter = "gtstore.entry", type = "bytes", min = 0},
  }},
  [0x20] = {name = "MAP_UPDATE", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "rows", filter = "gtstore.rows", type = "array", length = 4, record = "row"},
  }},
  [0xa0] = {name = "ADOPTED", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
  }},
  [0xff] = {name = "ERROR", fields = {
    {name = "code", filter = "gtstore.code", type = "number", size = 2, names = {[1] = "BAD_MAGIC", [2] = "UNSUPPORTED_VERSION", [3] = "FRAME_TOO_LONG", [4] = "UNKNOWN_KIND", [5] = "UNKNOWN_FLAGS", [6] = "MALFORMED", [7] = "FRAME_TIMEOUT", [8] = "NOT_ALLOWED", [9] = "BUSY", [10] = "VALUE_TOO_LONG", [11] = "NOT_READY", [12] = "STALE_EPOCH", [13] = "BEHIND", [14] = "WRONG_PARTITION", [15] = "TOO_FAR", [16] = "NO_SPACE", [17] = "UNAVAILABLE", [18] = "INTERNAL"}},
    {name = "message", filter = "gtstore.message", type = "text", length = 2, min = 0, max = 1000},
    {name = "detail", filter = "gtstore.detail", type = "detail"},
  }},
}

local ERRORS = {
  [1] = {name = "BAD_MAGIC", fields = {
  }},
  [2] = {name = "UNSUPPORTED_VERSION", fields = {
    {name = "highest", filter = "gtstore.error.highest", type = "number", size = 1},
  }},
  [3] = {name = "FRAME_TOO_LONG", fields = {
    {name = "size_max", filter = "gtstore.error.size_max", type = "number", size = 4},
  }},
  [4] = {name = "UNKNOWN_KIND", fields = {
  }},
  [5] = {name = "UNKNOWN_FLAGS", fields = {
  }},
  [6] = {name = "MALFORMED", fields = {
  }},
  [7] = {name = "FRAME_TIMEOUT", fields = {
  }},
  [8] = {name = "NOT_ALLOWED", fields = {
  }},
  [9] = {name = "BUSY", fields = {
    {name = "connections_max", filter = "gtstore.error.connections_max", type = "number", size = 4},
  }},
  [10] = {name = "VALUE_TOO_LONG", fields = {
    {name = "size_max", filter = "gtstore.error.size_max", type = "number", size = 4},
  }},
  [11] = {name = "NOT_READY", fields = {
  }},
  [12] = {name = "STALE_EPOCH", fields = {
    {name = "row", filter = "gtstore.error.row", type = "record", record = "row"},
  }},
  [13] = {name = "BEHIND", fields = {
  }},
  [14] = {name = "WRONG_PARTITION", fields = {
    {name = "partition", filter = "gtstore.error.partition", type = "number", size = 4},
  }},
  [15] = {name = "TOO_FAR", fields = {
    {name = "time_max", filter = "gtstore.error.time_max", type = "time", size = 8},
  }},
  [16] = {name = "NO_SPACE", fields = {
  }},
  [17] = {name = "UNAVAILABLE", fields = {
    {name = "required", filter = "gtstore.error.required", type = "number", size = 2},
    {name = "alive", filter = "gtstore.error.alive", type = "number", size = 2},
  }},
  [18] = {name = "INTERNAL", fields = {
  }},
}

-- end

-- --- fields ------------------------------------------------------------------------------------

local gtstore = Proto("gtstore", "GT Store")

local proto_fields = {}     -- filter -> ProtoField
local registered = {}

local function register(filter, field)
  if not proto_fields[filter] then
    proto_fields[filter] = field
    registered[#registered + 1] = field
  end
end

local NUMBERS = {[1] = "uint8", [2] = "uint16", [4] = "uint32", [8] = "uint64"}

local function register_all(fields)
  for _, field in ipairs(fields) do
    local filter, name = field.filter, field.name
    if field.type == "number" then
      register(filter, ProtoField[NUMBERS[field.size]](filter, name, base.DEC, field.names))
    elseif field.type == "epoch" then
      register(filter, ProtoField.uint64(filter, name, base.HEX))
    elseif field.type == "time" then
      register(filter, ProtoField.absolute_time(filter, name, base.UTC))
    elseif field.type == "text" then
      register(filter, ProtoField.string(filter, name))
    elseif field.type == "token" or field.type == "record" or field.type == "array" then
      register(filter, ProtoField.none(filter, name))
    else
      register(filter, ProtoField.bytes(filter, name))
    end
    if field.bits then
      for _, flag in ipairs(ENTRY_FLAGS) do
        local bit = filter .. "." .. flag.name
        register(bit, ProtoField.bool(bit, flag.name, 8, nil, flag.bit))
      end
    end
  end
end

for _, fields in pairs(RECORDS) do register_all(fields) end
for _, message in pairs(MESSAGES) do register_all(message.fields) end
for _, row in pairs(ERRORS) do register_all(row.fields) end

local kind_names = {}
for kind, message in pairs(MESSAGES) do kind_names[kind] = message.name end
local code_names = {}
for code, row in pairs(ERRORS) do code_names[code] = row.name end

local kind_field = ProtoField.uint8("gtstore.header.kind", "kind", base.HEX, kind_names)
for i, field in ipairs(registered) do
  if field == proto_fields["gtstore.header.kind"] then registered[i] = kind_field end
end
proto_fields["gtstore.header.kind"] = kind_field

local response_in = ProtoField.framenum("gtstore.response_in", "response in", base.NONE, frametype.RESPONSE)
local response_to = ProtoField.framenum("gtstore.response_to", "response to", base.NONE, frametype.REQUEST)
local response_time = ProtoField.relative_time("gtstore.response_time", "response time")
registered[#registered + 1] = response_in
registered[#registered + 1] = response_to
registered[#registered + 1] = response_time
gtstore.fields = registered

local malformed = ProtoExpert.new("gtstore.malformed", "malformed", expert.group.MALFORMED, expert.severity.ERROR)
local unknown = ProtoExpert.new("gtstore.unknown", "unknown", expert.group.UNDECODED, expert.severity.WARN)
local later = ProtoExpert.new("gtstore.later", "of a later version", expert.group.COMMENTS_GROUP, expert.severity.COMMENT)
gtstore.experts = {malformed, unknown, later}

gtstore.prefs.ports = Pref.range("TCP ports", PORTS, "of managers and nodes", 65535)

-- --- reading by the tables ---------------------------------------------------------------------

local read_record           -- defined below: records have records in them

-- A place in a body: bytes from at to stop are left. Taking more than that is malformed.
local Cursor = {}
Cursor.__index = Cursor

function Cursor:take(size, what)
  if self.at + size > self.stop then
    error({malformed = what .. " leaves the body"})
  end
  local range = self.tvb:range(self.at, size)
  self.at = self.at + size
  return range
end

function Cursor:left()
  return self.stop - self.at
end

local function number_of(range)
  return range:len() == 8 and range:uint64():tonumber() or range:uint()
end

local function add_number(tree, field, range)
  local item = tree:add(proto_fields[field.filter], range)
  if field.names and not field.names[number_of(range)] then
    item:add_proto_expert_info(unknown, field.name .. " has a value that is not in the table")
  end
  return number_of(range)
end

local function add_flags(tree, field, range)
  local value = range:uint()
  local item = tree:add(proto_fields[field.filter], range)
  local rest = value
  for i = #ENTRY_FLAGS, 1, -1 do
    local flag = ENTRY_FLAGS[i]
    item:add(proto_fields[field.filter .. "." .. flag.name], range)
    if bit.band(value, flag.bit) ~= 0 then
      rest = rest - flag.bit
      item:append_text(" " .. flag.name)
    end
  end
  if rest ~= 0 then item:add_proto_expert_info(unknown, "flags that are not in the table") end
  return value
end

local function add_epoch(tree, field, range)
  local item = tree:add(proto_fields[field.filter], range)
  local counter = range:range(4, 4):uint()
  item:append_text(string.format(" (cluster %08x, counter %d)", range:range(0, 4):uint(), counter))
  return counter
end

local function add_time(tree, field, range)
  local microseconds = range:uint64()
  local seconds = (microseconds / 1000000):tonumber()
  local rest = (microseconds % 1000000):tonumber()
  tree:add(proto_fields[field.filter], range, NSTime.new(seconds, rest * 1000))
end

local function add_counted(cursor, tree, field)
  local size_range = cursor:take(field.length, "the size of " .. field.name)
  local size = size_range:uint()
  if size < field.min or size > field.max then
    error({malformed = string.format("%s has %d bytes; %d to %d are allowed", field.name, size, field.min, field.max)})
  end
  if size == 0 then
    tree:add(proto_fields[field.filter], size_range, ""):append_text("(empty)")
    return ""
  end
  local range = cursor:take(size, field.name)
  tree:add(proto_fields[field.filter], range)
  return field.type == "text" and range:string() or nil
end

local function read_array(cursor, tree, field)
  local count = cursor:take(field.length, "the count of " .. field.name):uint()
  local subtree = tree:add(proto_fields[field.filter], cursor.tvb:range(cursor.at - field.length, field.length))
  subtree:append_text(": " .. count)
  for i = 0, count - 1 do
    if cursor:left() == 0 then error({malformed = field.name .. " has fewer items than it says"}) end
    local start = cursor.at
    local item = subtree:add(gtstore, cursor.tvb:range(start, 1), field.name .. "[" .. i .. "]")
    read_record(cursor, item, RECORDS[field.record])
    item:set_len(cursor.at - start)
  end
end

local function read_nested(cursor, tree, field)
  if cursor:left() == 0 then error({malformed = field.name .. " is missing"}) end
  local start = cursor.at
  local subtree = tree:add(proto_fields[field.filter], cursor.tvb:range(start, 1))
  local values = read_record(cursor, subtree, RECORDS[field.record])
  subtree:set_len(cursor.at - start)
  return values
end

local function read_rest(cursor, tree, field)
  local size = cursor:left()
  if field.min and size < field.min then error({malformed = field.name .. " is too short"}) end
  if size > 0 then tree:add(proto_fields[field.filter], cursor:take(size, field.name)) end
end

-- The fields of an error's code; what stands behind them is a later version's.
local function read_detail(cursor, tree, field, values)
  local row = ERRORS[values.code]
  if row then read_record(cursor, tree, row.fields) end
  if cursor:left() > 0 then
    local item = tree:add(proto_fields[field.filter], cursor:take(cursor:left(), field.name))
    if row then item:add_proto_expert_info(later) end
  end
end

local function read_field(cursor, tree, field, values)
  if field.type == "record" then return read_nested(cursor, tree, field) end
  if field.type == "array" then return read_array(cursor, tree, field) end
  if field.type == "detail" then return read_detail(cursor, tree, field, values) end
  if field.length then return add_counted(cursor, tree, field) end
  if not field.size then return read_rest(cursor, tree, field) end
  local range = cursor:take(field.size, field.name)
  if field.bits then return add_flags(tree, field, range) end
  if field.type == "number" then return add_number(tree, field, range) end
  if field.type == "epoch" then return add_epoch(tree, field, range) end
  if field.type == "time" then return add_time(tree, field, range) end
  local item = tree:add(proto_fields[field.filter], range)
  if field.type == "token" then item:append_text(" (a secret)") end
end

function read_record(cursor, tree, fields)
  local values = {}
  for _, field in ipairs(fields) do
    if not field.if_flag or bit.band(values.flags, field.if_flag) ~= 0 then
      values[field.name] = read_field(cursor, tree, field, values)
    end
  end
  return values
end

-- --- requests and their replies ----------------------------------------------------------------

local tcp_stream = Field.new("tcp.stream")
local asked = {}            -- stream and request id -> the request's packet and time, until it is answered
local answers = {}          -- packet, stream and request id of a reply -> its request's packet and time
local answered_in = {}      -- packet, stream and request id of a request -> its reply's packet

function gtstore.init()
  asked, answers, answered_in = {}, {}, {}
end

local function link(pinfo, tree, kind, request_id)
  local stream = tcp_stream()
  if request_id == 0 or not stream then return end
  local name = tostring(stream.value) .. ":" .. request_id
  local here = pinfo.number .. ":" .. name
  if kind < 0x80 then
    if not pinfo.visited then asked[name] = {number = pinfo.number, time = pinfo.abs_ts} end
    if answered_in[here] then tree:add(response_in, answered_in[here]):set_generated() end
    return
  end
  if not pinfo.visited and asked[name] then
    answers[here] = asked[name]
    answered_in[asked[name].number .. ":" .. name] = pinfo.number
    asked[name] = nil
  end
  local request = answers[here]
  if request then
    local seconds = math.max(0, pinfo.abs_ts - request.time)
    tree:add(response_to, request.number):set_generated()
    tree:add(response_time, NSTime.new(math.floor(seconds), math.floor(seconds % 1 * 1e9))):set_generated()
  end
end

-- --- frames ------------------------------------------------------------------------------------

local function printable(text)
  return (text:gsub("[^%g ]", "."):sub(1, 40))
end

local function info_of(message, request_id, values)
  local info = message.name .. " " .. request_id
  if values.key then info = info .. " '" .. printable(values.key) .. "'" end
  if values.code then info = info .. " " .. (code_names[values.code] or values.code) end
  return info
end

local last_number = 0

local function add_info(pinfo, text)
  if pinfo.number ~= last_number then
    last_number = pinfo.number
    pinfo.cols.info:set(text)
  else
    pinfo.cols.info:append(", " .. text)
  end
end

local function read_body(tvb, subtree, message, header)
  local cursor = setmetatable({tvb = tvb, at = HEADER_SIZE, stop = tvb:len()}, Cursor)
  local is_read, values = pcall(read_record, cursor, subtree, message.fields)
  if not is_read then
    local reason = type(values) == "table" and values.malformed or tostring(values)
    subtree:add_proto_expert_info(malformed, reason)
    return {}
  end
  if cursor:left() > 0 then
    subtree:add_proto_expert_info(malformed, cursor:left() .. " bytes after the end of " .. message.name)
  end
  if header.kind == ERROR and not ERRORS[values.code] then
    subtree:add_proto_expert_info(unknown, "an error code that is not in the table")
  end
  return values
end

local function read_header(tvb, tree)
  local cursor = setmetatable({tvb = tvb, at = 0, stop = HEADER_SIZE}, Cursor)
  return read_record(cursor, tree, RECORDS.header)
end

local function dissect_frame(tvb, pinfo, root)
  pinfo.cols.protocol = "GTSTORE"
  local tree = root:add(gtstore, tvb())
  if tvb:len() < HEADER_SIZE or tvb(0, 1):uint() ~= MAGIC then
    tree:add_proto_expert_info(malformed, "this is no frame")
    add_info(pinfo, "no frame")
    return tvb:len()
  end
  local header = read_header(tvb, tree)
  if header.version ~= VERSION then
    tree:add_proto_expert_info(malformed, "another version of the protocol")
    add_info(pinfo, "version " .. header.version)
    return tvb:len()
  end
  if header.length > BODY_SIZE_MAX then
    tree:add_proto_expert_info(malformed, "a body that is too long")
    add_info(pinfo, "too long")
    return tvb:len()
  end
  local message = MESSAGES[header.kind]
  if header.flags ~= 0 then tree:add_proto_expert_info(unknown, "header flags that are not in the table") end
  if not message then
    tree:add_proto_expert_info(unknown, "a kind that is not in the table")
    add_info(pinfo, string.format("kind 0x%02x %d", header.kind, header.request_id))
    return tvb:len()
  end
  tree:append_text(", " .. message.name .. " " .. header.request_id)
  local values = read_body(tvb, tree, message, header)
  add_info(pinfo, info_of(message, header.request_id, values))
  link(pinfo, tree, header.kind, header.request_id)
  return tvb:len()
end

-- The size of the frame that begins at an offset. What is no frame is taken as a whole.
local function frame_size(tvb, _, offset)
  local length = tvb(offset + 8, 4):uint()
  if tvb(offset, 1):uint() ~= MAGIC or tvb(offset + 1, 1):uint() ~= VERSION or length > BODY_SIZE_MAX then
    return tvb:len() - offset
  end
  return HEADER_SIZE + length
end

function gtstore.dissector(tvb, pinfo, tree)
  return dissect_tcp_pdus(tvb, tree, HEADER_SIZE, frame_size, dissect_frame)
end

local function begins_like_a_frame(tvb, pinfo, tree)
  if tvb:len() < HEADER_SIZE or tvb(0, 1):uint() ~= MAGIC or tvb(1, 1):uint() ~= VERSION then return false end
  if not MESSAGES[tvb(2, 1):uint()] or tvb(8, 4):uint() > BODY_SIZE_MAX then return false end
  pinfo.conversation = gtstore
  gtstore.dissector(tvb, pinfo, tree)
  return true
end

gtstore:register_heuristic("tcp", begins_like_a_frame)

local tcp_ports = DissectorTable.get("tcp.port")
local ports = ""

local function take_ports()
  if ports ~= "" then tcp_ports:remove(ports, gtstore) end
  ports = gtstore.prefs.ports
  if ports ~= "" then tcp_ports:add(ports, gtstore) end
end

gtstore.prefs_changed = take_ports
take_ports()
