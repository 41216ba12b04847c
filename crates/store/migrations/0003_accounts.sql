-- Numbers of accounts are never given out twice (AUTOINCREMENT), so that nothing of a deleted
-- account can become somebody else's.
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    username TEXT NOT NULL UNIQUE COLLATE NOCASE,
    display_name TEXT NOT NULL,
    role TEXT NOT NULL,
    is_active INTEGER NOT NULL DEFAULT 1,
    -- A PHC string; none for those who come by OpenID Connect only.
    password TEXT,
    -- Issuer and subject of OpenID Connect.
    external TEXT UNIQUE,
    quota TEXT NOT NULL DEFAULT '{}',
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    quota TEXT NOT NULL DEFAULT '{}',
    -- What each request of a member may be at most to need no operator; none: all need one.
    auto_approve TEXT,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE group_members (
    group_id INTEGER NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (group_id, user_id)
) STRICT;

CREATE INDEX group_members_by_user ON group_members (user_id);

-- Secrets are kept as their SHA-256 only.
CREATE TABLE sessions (
    hash TEXT PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX sessions_by_user ON sessions (user_id);

CREATE TABLE api_tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    used_ms INTEGER
) STRICT;

CREATE INDEX api_tokens_by_user ON api_tokens (user_id);

CREATE TABLE invitations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hash TEXT NOT NULL UNIQUE,
    -- Its first characters, to tell it from others.
    shown TEXT NOT NULL,
    role TEXT NOT NULL,
    group_id INTEGER REFERENCES groups (id) ON DELETE CASCADE,
    max_usage INTEGER NOT NULL,
    usage_count INTEGER NOT NULL DEFAULT 0,
    expires_ms INTEGER NOT NULL,
    -- None: the host made it, for the first admin.
    created_by INTEGER REFERENCES users (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE password_resets (
    hash TEXT PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE user_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL UNIQUE,
    line TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX user_keys_by_user ON user_keys (user_id);

-- An account that owns instances cannot be deleted.
ALTER TABLE instances ADD COLUMN owner_id INTEGER REFERENCES users (id);

-- Names are unique among what one person owns: nobody learns from a refusal what others have.
-- `name`, unique over all, cannot be dropped from the table and is empty from now on.
ALTER TABLE instances ADD COLUMN label TEXT;
UPDATE instances SET label = name, name = NULL;
CREATE UNIQUE INDEX instances_by_label ON instances (ifnull(owner_id, 0), label);

CREATE TABLE shares (
    instance_id INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    group_id INTEGER REFERENCES groups (id) ON DELETE CASCADE,
    level TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    CHECK ((user_id IS NULL) <> (group_id IS NULL))
) STRICT;

CREATE UNIQUE INDEX shares_by_instance ON shares (instance_id, ifnull(user_id, 0), ifnull(group_id, 0));
CREATE INDEX shares_by_user ON shares (user_id);
CREATE INDEX shares_by_group ON shares (group_id);

-- Instances that somebody asked for and an operator decides on. What is granted becomes an
-- instance of the same id, and stays here as the record of who agreed.
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    owner_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    label TEXT,
    -- What was asked, as it was sent.
    wish TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'rejected')),
    created_ms INTEGER NOT NULL,
    decided_ms INTEGER,
    -- A name, since accounts go and this stays.
    decided_by TEXT,
    decided_by_id INTEGER,
    reason TEXT,
    revision INTEGER NOT NULL DEFAULT 1
) STRICT;

CREATE INDEX requests_by_state ON requests (state);
CREATE UNIQUE INDEX requests_by_label ON requests (owner_id, label) WHERE state = 'pending';

-- How long whose instances held how many GPUs.
CREATE TABLE gpu_time (
    owner_id INTEGER NOT NULL,
    instance_id INTEGER NOT NULL,
    gpus INTEGER NOT NULL,
    from_ms INTEGER NOT NULL,
    to_ms INTEGER
) STRICT;

CREATE INDEX gpu_time_by_owner ON gpu_time (owner_id, from_ms);
CREATE INDEX gpu_time_by_instance ON gpu_time (instance_id, to_ms);

-- Who did what. Each entry's hash covers the one before it, so that none can be changed or taken
-- out unseen.
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    actor_id INTEGER,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    result TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
