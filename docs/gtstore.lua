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
--   gtstore.cut           the capture does not have all of the frame
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
    {name = "value", filter = "gtstore.entry.value", type = "bytes"},
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
  trouble = {
    {name = "what", filter = "gtstore.trouble.what", type = "text", length = 2, min = 0, max = 1000},
    {name = "since", filter = "gtstore.trouble.since", type = "time", size = 8},
    {name = "reason", filter = "gtstore.trouble.reason", type = "text", length = 2, min = 0, max = 1000},
  },
  join = {
    {name = "partition", filter = "gtstore.join.partition", type = "number", size = 4},
    {name = "join_epoch", filter = "gtstore.join.join_epoch", type = "epoch", size = 8},
  },
  heldentry = {
    {name = "key", filter = "gtstore.heldentry.key", type = "text", length = 2, min = 1, max = 500},
    {name = "version", filter = "gtstore.heldentry.version", type = "version", size = 16},
    {name = "checksum", filter = "gtstore.heldentry.checksum", type = "number", size = 4},
  },
  keyedentry = {
    {name = "key", filter = "gtstore.keyedentry.key", type = "text", length = 2, min = 1, max = 500},
    {name = "entry", filter = "gtstore.keyedentry.entry", type = "bytes", length = 4, min = 1, max = 16777245},
  },
  scannedkey = {
    {name = "key", filter = "gtstore.scannedkey.key", type = "text", length = 2, min = 1, max = 500},
    {name = "entry", filter = "gtstore.scannedkey.entry", type = "bytes", length = 4, min = 0, max = 65536},
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
    {name = "full", filter = "gtstore.full", type = "number", size = 1},
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
    {name = "joins", filter = "gtstore.joins", type = "array", length = 4, record = "join"},
    {name = "doubtful", filter = "gtstore.doubtful", type = "array", length = 4, record = "join"},
    {name = "marks", filter = "gtstore.marks", type = "bytes", length = 2, min = 0, max = 1024},
  }},
  [0x86] = {name = "REGISTERED", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "nodes", filter = "gtstore.nodes", type = "number", size = 2},
    {name = "replicas", filter = "gtstore.replicas", type = "number", size = 2},
    {name = "hash", filter = "gtstore.hash", type = "number", size = 1, names = {[1] = "additive", [2] = "crc16"}},
  }},
  [0x07] = {name = "IN_SYNC", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "joins", filter = "gtstore.joins", type = "array", length = 4, record = "join"},
  }},
  [0x87] = {name = "NOTED", fields = {
  }},
  [0x08] = {name = "LEAVE", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "join", filter = "gtstore.join", type = "record", record = "join"},
  }},
  [0x0c] = {name = "NEW_MARK", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "incarnation", filter = "gtstore.incarnation", type = "number", size = 4},
    {name = "mark", filter = "gtstore.mark", type = "mark", size = 16},
  }},
  [0x09] = {name = "GET_STATISTICS", fields = {
  }},
  [0x89] = {name = "STATISTICS", fields = {
    {name = "incarnation", filter = "gtstore.incarnation", type = "number", size = 4},
    {name = "gets", filter = "gtstore.gets", type = "number", size = 8},
    {name = "writes", filter = "gtstore.writes", type = "number", size = 8},
    {name = "executes", filter = "gtstore.executes", type = "number", size = 8},
  }},
  [0x0a] = {name = "GET_TROUBLES", fields = {
  }},
  [0x8a] = {name = "TROUBLES", fields = {
    {name = "troubles", filter = "gtstore.troubles", type = "array", length = 2, record = "trouble"},
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
    {name = "entry", filter = "gtstore.entry", type = "record", record = "entry", optional = true},
  }},
  [0x14] = {name = "SCAN", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "partition", filter = "gtstore.partition", type = "number", size = 4},
    {name = "after", filter = "gtstore.after", type = "text", length = 2, min = 0, max = 500},
    {name = "prefix", filter = "gtstore.prefix", type = "text", length = 2, min = 0, max = 500},
    {name = "with_values", filter = "gtstore.with_values", type = "number", size = 1},
  }},
  [0x96] = {name = "SCANNED", fields = {
    {name = "is_last", filter = "gtstore.is_last", type = "number", size = 1},
    {name = "after", filter = "gtstore.after", type = "text", length = 2, min = 0, max = 500},
    {name = "keys", filter = "gtstore.keys", type = "array", length = 4, record = "scannedkey"},
  }},
  [0x20] = {name = "MAP_UPDATE", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
    {name = "rows", filter = "gtstore.rows", type = "array", length = 4, record = "row"},
  }},
  [0xa0] = {name = "ADOPTED", fields = {
    {name = "epoch", filter = "gtstore.epoch", type = "epoch", size = 8},
  }},
  [0x21] = {name = "COPY", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "node", filter = "gtstore.node", type = "number", size = 2},
    {name = "row", filter = "gtstore.row", type = "record", record = "row"},
    {name = "after", filter = "gtstore.after", type = "text", length = 2, min = 0, max = 500},
    {name = "held", filter = "gtstore.held", type = "array", length = 4, record = "heldentry"},
  }},
  [0xa1] = {name = "COPIED", fields = {
    {name = "join_epoch", filter = "gtstore.join_epoch", type = "epoch", size = 8},
    {name = "is_last", filter = "gtstore.is_last", type = "number", size = 1},
    {name = "floor", filter = "gtstore.floor", type = "version", size = 16},
    {name = "entries", filter = "gtstore.entries", type = "array", length = 4, record = "keyedentry"},
  }},
  [0x22] = {name = "DIFFERS", fields = {
    {name = "token", filter = "gtstore.token", type = "token", size = 16},
    {name = "partition", filter = "gtstore.partition", type = "number", size = 4},
    {name = "version", filter = "gtstore.version", type = "version", size = 16},
    {name = "key", filter = "gtstore.key", type = "text", length = 2, min = 1, max = 500},
  }},
  [0xff] = {name = "ERROR", fields = {
    {name = "code", filter = "gtstore.code", type = "number", size = 2, names = {[1] = "BAD_MAGIC", [2] = "UNSUPPORTED_VERSION", [3] = "FRAME_TOO_LONG", [4] = "UNKNOWN_KIND", [5] = "UNKNOWN_FLAGS", [6] = "MALFORMED", [7] = "FRAME_TIMEOUT", [8] = "NOT_ALLOWED", [9] = "BUSY", [10] = "VALUE_TOO_LONG", [11] = "NOT_READY", [12] = "STALE_EPOCH", [13] = "BEHIND", [14] = "WRONG_PARTITION", [15] = "TOO_FAR", [16] = "NO_SPACE", [17] = "UNAVAILABLE", [18] = "INTERNAL", [19] = "TOO_OLD"}},
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
  [19] = {name = "TOO_OLD", fields = {
    {name = "version", filter = "gtstore.error.version", type = "version", size = 16},
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
local cut = ProtoExpert.new("gtstore.cut", "cut", expert.group.UNDECODED, expert.severity.NOTE)
local later = ProtoExpert.new("gtstore.later", "of a later version", expert.group.COMMENTS_GROUP, expert.severity.COMMENT)
gtstore.experts = {malformed, unknown, cut, later}

gtstore.prefs.ports = Pref.range("TCP ports", PORTS, "of managers and nodes", 65535)

-- --- bytes as text -----------------------------------------------------------------------------

-- The characters that are shown as they are: those of ASCII, and all others that are well-formed UTF-8 (the table in
-- section 4 of RFC 3629), without the control characters.
local CHARACTERS = {
  "^[\32-\126]",
  "^\194[\160-\191]",
  "^[\195-\223][\128-\191]",
  "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]",
  "^\237[\128-\159][\128-\191]",
  "^\240[\144-\191][\128-\191][\128-\191]",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]",
}

local function character_at(bytes, at)
  for _, pattern in ipairs(CHARACTERS) do
    local character = bytes:match(pattern, at)
    if character then return character end
  end
end

-- The first characters of some bytes. A byte that belongs to none is shown as \xff: a key may be any bytes.
local function text_of(bytes, characters_max)
  local shown, at = {}, 1
  while at <= #bytes and #shown < (characters_max or #bytes) do
    local character = character_at(bytes, at)
    shown[#shown + 1] = character or string.format("\\x%02x", bytes:byte(at))
    at = at + (character and #character or 1)
  end
  return table.concat(shown)
end

-- --- reading by the tables ---------------------------------------------------------------------

-- So many items of an array are shown. Wireshark refuses a packet with a million lines, which the map of a large
-- cluster would have, and nobody reads so many.
local ITEMS_SHOWN_MAX = 500

local read_record           -- defined below: records have records in them

-- A place in a frame that says it ends at stop; tvb has less than that if the capture was cut. Taking more than there
-- is ends the reading.
local Cursor = {}
Cursor.__index = Cursor

function Cursor:take(size, what)
  if size > self:left() then error({expert = malformed, reason = what .. " leaves the body"}) end
  if size > self:there() then error({expert = cut, reason = "cut in " .. what}) end
  local range = self.tvb:range(self.at, size)
  self.at = self.at + size
  return range
end

-- The first byte of something whose size is not known yet, without taking it.
function Cursor:first_of(what)
  local range = self:take(1, what)
  self.at = self.at - 1
  return range
end

function Cursor:left()
  return self.stop - self.at
end

function Cursor:there()
  return self.tvb:len() - self.at
end

-- Takes what a tree takes, and shows nothing: for items that are read but not shown.
local NOWHERE = {}
for _, method in ipairs({"add", "append_text", "set_len", "add_proto_expert_info"}) do
  NOWHERE[method] = function() return NOWHERE end
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

-- Add a field of so many bytes, or the beginning that the capture has of it; return the bytes of a text.
local function add_bytes(cursor, tree, field, size)
  local is_cut = cursor:there() > 0 and cursor:there() < size and size <= cursor:left()
  local range = cursor:take(is_cut and cursor:there() or size, field.name)
  local proto_field, text = proto_fields[field.filter], field.type == "text" and range:raw()
  local item = text and tree:add(proto_field, range, text_of(text)) or tree:add(proto_field, range)
  if is_cut then
    item:append_text(" (cut)")
    cursor:take(size - range:len(), field.name)  -- says that it is cut
  end
  return text
end

local function add_counted(cursor, tree, field)
  local size_range = cursor:take(field.length, "the size of " .. field.name)
  local size = size_range:uint()
  if size < field.min or size > field.max then
    local reason = string.format("%s has %d bytes; %d to %d are allowed", field.name, size, field.min, field.max)
    error({expert = malformed, reason = reason})
  end
  if size == 0 then
    tree:add(proto_fields[field.filter], size_range, ""):append_text("(empty)")
    return ""
  end
  return add_bytes(cursor, tree, field, size)
end

local function read_array(cursor, tree, field)
  local count_range = cursor:take(field.length, "the count of " .. field.name)
  local count = count_range:uint()
  local subtree = tree:add(proto_fields[field.filter], count_range)
  subtree:append_text(": " .. count)
  local shown = math.min(count, ITEMS_SHOWN_MAX)
  for i = 0, shown - 1 do
    local start = cursor.at
    local item = subtree:add(gtstore, cursor:first_of(field.name), field.name .. "[" .. i .. "]")
    read_record(cursor, item, RECORDS[field.record])
    item:set_len(cursor.at - start)
  end
  if count > shown then
    local start = cursor.at
    local item = subtree:add(gtstore, cursor:first_of(field.name), string.format("%d more", count - shown))
    for _ = shown + 1, count do read_record(cursor, NOWHERE, RECORDS[field.record]) end
    item:set_len(cursor.at - start)
  end
end

local function read_nested(cursor, tree, field)
  if field.optional and cursor:left() == 0 then return end
  local start = cursor.at
  local subtree = tree:add(proto_fields[field.filter], cursor:first_of(field.name))
  local values = read_record(cursor, subtree, RECORDS[field.record])
  subtree:set_len(cursor.at - start)
  return values
end

local function read_rest(cursor, tree, field)
  if cursor:left() > 0 then add_bytes(cursor, tree, field, cursor:left()) end
end

-- The fields of an error's code; what stands behind them is a later version's.
local function read_detail(cursor, tree, field, values)
  local row = ERRORS[values.code]
  if row then read_record(cursor, tree, row.fields) end
  if cursor:left() > 0 then
    if row then tree:add_proto_expert_info(later) end
    add_bytes(cursor, tree, field, cursor:left())
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

-- Read fields one after the other; return their values, which are put into the given table one by one, so that those
-- that were read before something was wrong are there.
function read_record(cursor, tree, fields, values)
  values = values or {}
  for _, field in ipairs(fields) do
    if not field.if_flag or bit.band(values.flags, field.if_flag) ~= 0 then
      values[field.name] = read_field(cursor, tree, field, values)
    end
  end
  return values
end

-- --- requests and their replies ----------------------------------------------------------------

local asked                 -- client, server and request id -> the request's packet and time, until it is answered
local answers               -- packet and that of a reply -> its request's packet and time
local answered_in           -- packet and that of a request -> its reply's packet
local cut_in                -- sender and receiver -> the first packet that the capture does not have all of

function gtstore.init()
  asked, answers, answered_in, cut_in = {}, {}, {}, {}
end

-- By addresses and ports: the field tcp.stream is not there whenever Wireshark looks at a packet for the first time.
local function sender(pinfo)
  return tostring(pinfo.src) .. ":" .. pinfo.src_port
end

local function receiver(pinfo)
  return tostring(pinfo.dst) .. ":" .. pinfo.dst_port
end

local function link(pinfo, tree, kind, request_id)
  if request_id == 0 then return end
  local is_request = kind < 0x80
  local client, server = sender(pinfo), receiver(pinfo)
  if not is_request then client, server = server, client end
  local name = client .. " " .. server .. " " .. request_id
  local here = pinfo.number .. " " .. name
  if is_request then
    if not pinfo.visited then asked[name] = {number = pinfo.number, time = pinfo.rel_ts} end
    if answered_in[here] then tree:add(response_in, answered_in[here]):set_generated() end
    return
  end
  if not pinfo.visited and asked[name] then
    answers[here] = asked[name]
    answered_in[asked[name].number .. " " .. name] = pinfo.number
    asked[name] = nil
  end
  local request = answers[here]
  if request then
    local nanoseconds = math.max(0, math.floor((pinfo.rel_ts - request.time) * 1e9 + 0.5))
    local time = NSTime.new(math.floor(nanoseconds / 1e9), nanoseconds % 1e9)
    tree:add(response_to, request.number):set_generated()
    tree:add(response_time, time):set_generated()
  end
end

-- --- frames ------------------------------------------------------------------------------------

local KEY_SHOWN_MAX = 40    -- characters of a key in the column Info

local function info_of(message, request_id, values)
  local info = message.name .. " " .. request_id
  if values.key then info = info .. " '" .. text_of(values.key, KEY_SHOWN_MAX) .. "'" end
  if values.code then info = info .. " " .. (code_names[values.code] or values.code) end
  return info
end

-- A packet may have many frames: the fence keeps what the first of them said.
local function add_info(pinfo, text)
  pinfo.cols.protocol = "GTSTORE"
  pinfo.cols.info:set(text .. "  ")
  pinfo.cols.info:fence()
end

-- Read fields up to the first thing that is wrong, which is noted; return what was read, and whether all was.
local function read_fields(cursor, tree, fields)
  local values = {}
  local is_read, problem = pcall(read_record, cursor, tree, fields, values)
  if not is_read then
    if type(problem) ~= "table" then error(problem, 0) end  -- a mistake in this file
    tree:add_proto_expert_info(problem.expert, problem.reason)
  end
  return values, is_read
end

local function read_header(tvb, tree)
  local cursor = setmetatable({tvb = tvb, at = 0, stop = HEADER_SIZE}, Cursor)
  return read_fields(cursor, tree, RECORDS.header)
end

local function read_body(tvb, tree, message, header)
  local cursor = setmetatable({tvb = tvb, at = HEADER_SIZE, stop = HEADER_SIZE + header.length}, Cursor)
  local values, is_read = read_fields(cursor, tree, message.fields)
  if is_read and cursor:left() > 0 then
    tree:add_proto_expert_info(malformed, cursor:left() .. " bytes after the end of " .. message.name)
  end
  if header.kind == ERROR and values.code and not ERRORS[values.code] then
    tree:add_proto_expert_info(unknown, "an error code that is not in the table")
  end
  return values
end

-- Dissect a frame, of which tvb may have only the beginning.
local function dissect_frame(tvb, pinfo, root)
  local tree = root:add(gtstore, tvb())
  local header, is_read = read_header(tvb, tree)
  if not is_read then return add_info(pinfo, "a header (cut)") end
  local message = MESSAGES[header.kind]
  local ending = tvb:len() < HEADER_SIZE + header.length and " (cut)" or ""
  if header.flags ~= 0 then tree:add_proto_expert_info(unknown, "header flags that are not in the table") end
  if not message then
    tree:add_proto_expert_info(unknown, "a kind that is not in the table")
    return add_info(pinfo, string.format("kind 0x%02x %d%s", header.kind, header.request_id, ending))
  end
  tree:append_text(", " .. message.name .. " " .. header.request_id .. ending)
  local values = read_body(tvb, tree, message, header)
  add_info(pinfo, info_of(message, header.request_id, values) .. ending)
  link(pinfo, tree, header.kind, header.request_id)
end

-- Mark bytes that begin no frame; nobody knows where the next one would begin. Behind a cut, they may well be the rest
-- of a frame.
local function dissect_no_frame(tvb, pinfo, root, reason)
  local tree = root:add(gtstore, tvb())
  local first_cut = cut_in[sender(pinfo) .. " " .. receiver(pinfo)]
  if first_cut and first_cut <= pinfo.number then
    tree:add_proto_expert_info(cut, "perhaps the rest of a frame whose beginning is cut off: " .. reason)
    return add_info(pinfo, "the rest of a frame?")
  end
  if tvb(0, 1):uint() == MAGIC and tvb:len() >= HEADER_SIZE then read_header(tvb, tree) end
  tree:add_proto_expert_info(malformed, reason)
  add_info(pinfo, reason)
end

-- The size of the frame that begins at an offset, or of its header if that is not whole; or nil, and why it is none.
local function frame_size(tvb, at)
  local there = tvb:len() - at
  if tvb(at, 1):uint() ~= MAGIC then return nil, "this is no frame" end
  if there > 1 and tvb(at + 1, 1):uint() ~= VERSION then return nil, "another version of the protocol" end
  local length = there >= HEADER_SIZE and tvb(at + 8, 4):uint() or 0
  if length > BODY_SIZE_MAX then return nil, "a body that is too long" end
  return HEADER_SIZE + length
end

-- Dissect what there is of a stream, from the beginning of a frame on, and ask for the rest of a frame that is not
-- whole. dissect_tcp_pdus would do that too, but it raises errors where a capture is cut, and looks at nothing before a
-- header's worth of bytes is there.
local function dissect(tvb, pinfo, root)
  local at, stop = 0, tvb:len()
  local may_ask = pinfo.can_desegment > 0  -- not if the packet is cut, or if the user does not want it
  if not may_ask then
    local way = sender(pinfo) .. " " .. receiver(pinfo)
    cut_in[way] = math.min(cut_in[way] or pinfo.number, pinfo.number)
  end
  while at < stop do
    local size, reason = frame_size(tvb, at)
    local there = stop - at
    if not size then
      dissect_no_frame(tvb(at):tvb(), pinfo, root, reason)
      return stop
    end
    if size > there and may_ask then
      pinfo.desegment_offset = at
      pinfo.desegment_len = size - there
      return stop
    end
    dissect_frame(tvb(at, math.min(size, there)):tvb(), pinfo, root)
    at = at + size
  end
  return stop
end

gtstore.dissector = dissect

-- Whether a connection of unknown use begins with a frame, to judge by the first four bytes and by the length if it is
-- there; then all that follows is taken for frames too.
local function begins_like_a_frame(tvb, pinfo, root)
  if tvb:len() < 4 or not frame_size(tvb, 0) then return false end
  if not MESSAGES[tvb(2, 1):uint()] or tvb(3, 1):uint() ~= 0 then return false end
  pinfo.conversation = gtstore
  dissect(tvb, pinfo, root)
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
