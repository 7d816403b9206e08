#!lua name=refrain1
-- What Refrain's sidecars call. Values that are not theirs are overwritten, never read.

-- A full server takes no new entry; what makes room, and who lives, it must take.
local function also_when_full(name, callback)
    redis.register_function { function_name = name, callback = callback, flags = { 'allow-oom' } }
end

local function owners(value, but)
    local kept = {}
    if value and #value > 0 and #value % 4 == 0 and #value <= 16 then
        for at = 1, #value, 4 do
            local owner = value:sub(at, at + 3)
            if not but(owner) then kept[#kept + 1] = owner end
        end
    end
    return kept
end

-- A key that is no bucket is nobody's of the fleet: it makes way.
local function value_of(bucket, field)
    local value = redis.pcall('HGET', bucket, field)
    if type(value) == 'table' then
        if not value.err:find('WRONGTYPE', 1, true) then error(value.err) end
        redis.call('DEL', bucket)
        return false
    end
    return value
end

-- KEYS: a bucket. ARGV: an owner, fields. The owner takes the place of its node's earlier epoch.
redis.register_function('refrain1_put', function(keys, args)
    local owner, node, written = args[1], args[1]:sub(1, 2), 0
    for i = 2, #args do
        local is_there = false
        local kept = owners(value_of(keys[1], args[i]), function(other)
            is_there = is_there or other == owner
            return other:sub(1, 2) == node
        end)
        if not is_there then
            kept[#kept + 1] = owner
            if #kept > 4 then table.remove(kept, 1) end
            redis.call('HSET', keys[1], args[i], table.concat(kept))
            written = written + 1
        end
    end
    return written
end)

-- KEYS: a bucket. ARGV: an owner, fields. Another epoch of its node stays.
also_when_full('refrain1_del', function(keys, args)
    local owner, removed = args[1], 0
    for i = 2, #args do
        local value = value_of(keys[1], args[i])
        if value then
            local now = table.concat(owners(value, function(other) return other == owner end))
            if #now == 0 then
                redis.call('HDEL', keys[1], args[i])
                removed = removed + 1
            elseif now ~= value then
                redis.call('HSET', keys[1], args[i], now)
                removed = removed + 1
            end
        end
    end
    return removed
end)

-- KEYS: records, a lease, the layout. ARGV: node, identity, epoch, address, now in ms, lease in ms,
-- the epoch of a node that nobody knows, bits of a bucket's number.
-- Gives its epoch and 'joined', or whose the number is. One that was forgotten is another than before.
also_when_full('refrain1_join', function(keys, args)
    local node, identity, epoch, raised = args[1], args[2], tonumber(args[3]), args[5]
    local record = redis.call('HGET', keys[1], node)
    local known, of, since, address
    if record then
        known, of, since, address = record:match('^1 (%d+) (%x+) (%d+) (.*)$')
        known = tonumber(known or record:match('^gone (%d+)$'))
    end
    if known and of == identity and epoch >= known then
        if epoch == known then raised = since end
    elseif known and of ~= identity and redis.call('EXISTS', keys[2]) == 1 then
        return { 0, address }
    elseif known then
        epoch = math.max(known + 1, epoch)
    elseif epoch == 0 then
        epoch = tonumber(args[7])
    end
    if epoch > 65535 then return { 0, '' } end
    redis.call('SET', keys[3], '1 ' .. args[8], 'NX')
    local now = table.concat({ '1', epoch, identity, raised, args[4] }, ' ')
    if now ~= record then redis.call('HSET', keys[1], node, now) end
    redis.call('SET', keys[2], epoch .. ' live', 'PX', args[6])
    return { epoch, 'joined' }
end)

-- KEYS: records, a lease. ARGV: node, identity, epoch, state, lease in ms; 0 ends it.
also_when_full('refrain1_beat', function(keys, args)
    local record = redis.call('HGET', keys[1], args[1]) or ''
    local known, of = record:match('^1 (%d+) (%x+) ')
    if known ~= args[3] or of ~= args[2] then return 0 end
    if args[5] == '0' then
        redis.call('DEL', keys[2])
    else
        redis.call('SET', keys[2], args[3] .. ' ' .. args[4], 'PX', args[5])
    end
    return 1
end)

-- KEYS: records, a lease. ARGV: node. Of a node that was forgotten its last epoch is left: what it
-- published is void, and whoever gets its number begins behind that.
-- Gives 1, or 0 while it lives, or -1 where there is none.
also_when_full('refrain1_forget', function(keys, args)
    local record = redis.call('HGET', keys[1], args[1]) or ''
    local known = record:match('^1 (%d+) ')
    if not known then return -1 end
    if redis.call('EXISTS', keys[2]) == 1 then return 0 end
    redis.call('HSET', keys[1], args[1], 'gone ' .. known)
    return 1
end)
