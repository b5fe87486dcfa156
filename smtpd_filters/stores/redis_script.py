"""The operations in Lua, for Redis and Valkey: one script applies those of a request.

A script runs atomically. It measures with the server's clock (TIME), so that all exchangers that
share the server agree on ages, whatever their own clocks show.

A value is a letter for its kind, the times at which it was written and at which it expires, and a
payload, with ":" between them: "E" is an entry with its bytes, "C" a counter with its number, "B" a
bucket with the time at which it is full. A group is a sorted set of members by their expiry; its
key is that of the entry with a "+" behind it. The server deletes what has expired.

Behind the results of the operations is the number of the last key whose entry is damaged
(`damage`), else 0. The last argument is a nonce, which is the last result as well (`redis_pool`).

`encode` and `decode` are the only code that knows the form of arguments and results.

Invariants
----------
*Set back*: an entry from the future, since the server's clock was set back, counts as written now
and keeps its duration. Otherwise a triplet would not age, and a bucket not fill, until the clock is
there again. So does a member of a group that expires later than one that joins now.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from .damage import LONGEST
from .operations import (
    MAX_MEMBERS,
    Add,
    Count,
    Delete,
    Entry,
    Get,
    Join,
    Joined,
    Leave,
    Put,
    Replace,
    Take,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .operations import Operation

#: Sets `now`, in seconds.
CLOCK = rb"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""
_OPERATIONS = rb"""
-- The key in use, and the last one whose value no operation can have written.
local current, damaged = 0, 0

local function stamp(seconds) return string.format('%.6f', seconds) end
local function milliseconds(seconds)
    return string.format('%d', math.max(math.ceil(seconds * 1000), 1))
end

-- Return the reply to a command; nil if the key has a value of another type.
local function call(name, key, ...)
    local reply = redis.pcall(name, key, ...)
    if type(reply) ~= 'table' or not reply.err then return reply end
    if not string.find(reply.err, 'WRONGTYPE', 1, true) then return redis.call(name, key, ...) end
    damaged = current
    return nil
end
local function is_sound(kind, written, expires, payload)
    -- *Set back*: a block for ten years is sound, also if it was written in the future.
    if expires < written or expires - written > LONGEST or written - now > LONGEST then
        return false
    end
    if kind == 'C' then return #payload <= 17 and string.find(payload, '^%-?%d+$') end
    if kind == 'B' then
        local full = string.match(payload, '^%d+%.%d+$')
        return full and math.abs(tonumber(full) - expires) <= 1
    end
    return true
end

local function write(key, kind, payload, written, expires)
    local value = kind .. stamp(written) .. ':' .. stamp(expires) .. ':' .. payload
    redis.call('SET', key, value, 'PX', milliseconds(expires - now))
end

-- Return kind, time written, expiry and payload; nothing if the key is absent or has expired.
local function read(key)
    local value = call('GET', key)
    if not value then return nil end
    local kind, written, expires, payload =
        string.match(value, '^([ECB])(%d+%.%d+):(%d+%.%d+):(.*)$')
    written, expires = tonumber(written), tonumber(expires)
    if not kind or not is_sound(kind, written, expires, payload) then
        damaged = current
        return nil
    end
    if expires <= now then return nil end
    local ahead = written - now
    if ahead > 1 then -- *Set back*
        written, expires = now, expires - ahead
        if kind == 'B' then payload = stamp(payload - ahead) end
        write(key, kind, payload, written, expires)
    end
    return kind, written, expires, payload
end
local function entry(written, expires, payload)
    return {payload, stamp(math.max(now - written, 0)), stamp(expires - now)}
end
local function sweep(group)
    if not call('ZREMRANGEBYSCORE', group, '-inf', stamp(now)) then redis.call('DEL', group) end
    if redis.call('ZREMRANGEBYSCORE', group, '(' .. stamp(now + LONGEST), '+inf') > 0 then
        damaged = current
    end
end

local run = {}
function run.get(key)
    local kind, written, expires, payload = read(key)
    if not kind then return false end
    return entry(written, expires, payload)
end
function run.put(key, value, ttl)
    write(key, 'E', value, now, now + ttl)
    return 1
end
function run.add(key, value, ttl)
    local kind, written, expires, payload = read(key)
    if kind then return entry(written, expires, payload) end
    write(key, 'E', value, now, now + ttl)
    return false
end
function run.replace(key, value, ttl, expected)
    local kind, _, _, payload = read(key)
    if kind ~= 'E' or payload ~= expected then return 0 end
    write(key, 'E', value, now, now + ttl)
    return 1
end
function run.delete(key)
    local group = key .. '+'
    sweep(group)
    local here = 0
    if read(key) then here = 1 end
    redis.call('DEL', key)
    return here + redis.call('DEL', group)
end
function run.count(key, by, window)
    local kind, written, expires, payload = read(key)
    by = tonumber(by)
    if kind ~= 'C' then written, expires, payload = now, now + window, 0 end
    local count = payload + by
    if by ~= 0 then write(key, 'C', string.format('%d', count), written, expires) end
    return count
end
function run.take(key, rate, burst, cost)
    rate, burst, cost = tonumber(rate), tonumber(burst), tonumber(cost)
    local full = now
    local kind, _, _, payload = read(key)
    if kind == 'B' then full = math.max(tonumber(payload), now) end
    local share = cost / rate
    local wanted = share
    if cost == 0 then wanted = 1 / rate end
    local wait = full + wanted - now - burst / rate
    if cost >= 0 and wait > 0.000001 then return stamp(wait) end
    if cost ~= 0 then
        full = math.max(full + share, now)
        if full > now then
            write(key, 'B', stamp(full), now, full)
        else
            redis.call('DEL', key)
        end
    end
    return '0'
end
function run.join(key, member, limit, ttl, bound)
    local group = key .. '+'
    sweep(group)
    if tonumber(limit) > 0 then -- *Set back*
        local last = stamp(now + ttl)
        local ahead = '(' .. stamp(now + ttl + 1)
        for _, each in ipairs(redis.call('ZRANGEBYSCORE', group, ahead, '+inf')) do
            redis.call('ZADD', group, last, each)
        end
    end
    local members = redis.call('ZCARD', group)
    local here = redis.call('ZSCORE', group, member)
    if not here and members >= tonumber(limit) then
        return {0, math.min(members, tonumber(bound))}
    end
    redis.call('ZADD', group, stamp(now + ttl), member)
    local last = redis.call('ZREVRANGE', group, 0, 0, 'WITHSCORES')[2]
    redis.call('PEXPIRE', group, milliseconds(last - now))
    if not here then members = members + 1 end
    return {1, math.min(members, tonumber(bound) + 1)}
end
function run.leave(key, member)
    local group = key .. '+'
    sweep(group)
    return redis.call('ZREM', group, member)
end

local results, at = {}, 1
for number = 1, #KEYS do
    local name, count = ARGV[at], tonumber(ARGV[at + 1])
    current = number
    results[number] = run[name](KEYS[number], unpack(ARGV, at + 2, at + 1 + count))
    at = at + 2 + count
end
results[#KEYS + 1] = damaged
results[#KEYS + 2] = ARGV[#ARGV]
return results
"""


class Script(NamedTuple):
    """A script, and the digest by which EVALSHA names it."""

    source: bytes
    digest: str


def script(clock: bytes = CLOCK) -> Script:
    """Return the script; `clock` sets `now`."""
    source = clock + b"\nlocal LONGEST = %d\n" % LONGEST + _OPERATIONS
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


def encode(operation: Operation[Any]) -> Sequence[bytes | int | float]:
    """Return name, number of arguments and arguments of an operation."""
    name: bytes
    arguments: tuple[bytes | int | float, ...]
    match operation:
        case Get():
            name, arguments = b"get", ()
        case Put(value=value, ttl=ttl):
            name, arguments = b"put", (value, ttl)
        case Add(value=value, ttl=ttl):
            name, arguments = b"add", (value, ttl)
        case Replace(value=value, ttl=ttl, expected=expected):
            name, arguments = b"replace", (value, ttl, expected)
        case Delete():
            name, arguments = b"delete", ()
        case Count(by=by, window=window):
            name, arguments = b"count", (by, window)
        case Take(rate=rate, burst=burst, cost=cost):
            name, arguments = b"take", (rate, burst, cost)
        case Join(member=member, limit=limit, ttl=ttl):
            name, arguments = b"join", (member, limit, ttl, MAX_MEMBERS)
        case Leave(member=member):
            name, arguments = b"leave", (member,)
        case _:
            raise TypeError(f"{type(operation).__name__} has no form in Lua")
    return (name, len(arguments), *arguments)


def decode(operation: Operation[Any], result: Any) -> Any:
    """Return the result of an operation from the server's.

    Raises TypeError, ValueError or OverflowError if it has another form.
    """
    match operation:
        case Get() | Add():
            return None if result is None else entry(result)
        case Put():
            return None
        case Replace() | Delete() | Leave():
            return bool(result)
        case Count():
            return int(result)
        case Take():
            return seconds(result)
        case Join():
            joined, members = result
            return Joined(joined=bool(joined), members=int(members))
        case _:
            raise TypeError(f"{type(operation).__name__} has no form in Lua")


def entry(result: Sequence[bytes]) -> Entry:
    """Return the entry of a result."""
    value, age, left = result
    if type(value) is not bytes:
        raise TypeError("an entry without bytes")
    return Entry(value, seconds(age), seconds(left))


def seconds(result: bytes) -> float:
    """Return the seconds of a result."""
    number = float(result)
    if not 0 <= number <= LONGEST:  # or not a number
        raise ValueError("no duration")
    return number
