CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    joined_ms INTEGER NOT NULL,
    inventory TEXT,
    runner_version TEXT,
    clock_skew_ms INTEGER NOT NULL DEFAULT 0,
    seen_ms INTEGER
) STRICT;

CREATE TABLE join_tokens (
    hash TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms INTEGER,
    used_by TEXT
) STRICT;

CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    name TEXT UNIQUE,
    node_id TEXT NOT NULL REFERENCES nodes (id),
    spec TEXT NOT NULL,
    desired TEXT NOT NULL,
    generation INTEGER NOT NULL,
    start_generation INTEGER NOT NULL,
    intent_ms INTEGER NOT NULL,
    observation TEXT,
    revision INTEGER NOT NULL DEFAULT 1,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX instances_by_node ON instances (node_id);

CREATE TABLE allocations (
    instance_id INTEGER PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    node_id TEXT NOT NULL REFERENCES nodes (id),
    cores INTEGER NOT NULL CHECK (cores >= 0),
    memory_bytes INTEGER NOT NULL CHECK (memory_bytes >= 0)
) STRICT;

CREATE INDEX allocations_by_node ON allocations (node_id);

CREATE TABLE ssh_ports (
    port INTEGER PRIMARY KEY CHECK (port BETWEEN 9000 AND 65535),
    instance_id INTEGER NOT NULL UNIQUE REFERENCES instances (id) ON DELETE CASCADE
) STRICT;

-- The largest id ever given out, so that an id is never used twice, also after a delete and
-- with a clock that stepped back.
CREATE TABLE last_id (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id INTEGER NOT NULL
) STRICT;

INSERT INTO last_id (one, id) VALUES (1, 0);
