ALTER TABLE nodes ADD COLUMN drained INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';

-- The node that a machine may take up with this token.
ALTER TABLE join_tokens ADD COLUMN readmits TEXT;

ALTER TABLE instances ADD COLUMN disk_generation INTEGER NOT NULL DEFAULT 0;

ALTER TABLE allocations ADD COLUMN numa INTEGER;

-- A GPU has one owner, whatever anybody computed.
CREATE TABLE gpu_allocations (
    node_id TEXT NOT NULL REFERENCES nodes (id),
    gpu TEXT NOT NULL,
    instance_id INTEGER NOT NULL REFERENCES allocations (instance_id) ON DELETE CASCADE,
    PRIMARY KEY (node_id, gpu)
) STRICT;

CREATE INDEX gpu_allocations_by_instance ON gpu_allocations (instance_id);

-- What happened to instances. It outlives them, so nothing refers to them.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_instance ON events (instance_id, id);
CREATE INDEX events_by_time ON events (at_ms);
