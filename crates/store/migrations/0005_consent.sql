-- What an account answered to a share: nothing enters its lists before it has taken it. A row
-- outlives its share, so that what was declined is not offered again; a share counts as taken
-- where the answer is not older than it.
CREATE TABLE share_answers (
    instance_id INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    answer TEXT NOT NULL CHECK (answer IN ('taken', 'declined')),
    -- A name of the account's own choice.
    alias TEXT,
    answered_ms INTEGER NOT NULL,
    PRIMARY KEY (instance_id, user_id)
) STRICT;

CREATE UNIQUE INDEX share_answers_by_alias ON share_answers (user_id, alias)
    WHERE alias IS NOT NULL;

-- Shares from before were in the lists of those they reach, and stay there.
INSERT INTO share_answers (instance_id, user_id, answer, answered_ms)
    SELECT instance_id, user_id, 'taken', MAX(created_ms) FROM (
        SELECT instance_id, user_id, created_ms FROM shares WHERE user_id IS NOT NULL
        UNION ALL SELECT s.instance_id, m.user_id, s.created_ms
            FROM shares s JOIN group_members m ON m.group_id = s.group_id)
    GROUP BY instance_id, user_id;

-- Instances that their owner, or an admin, offers to another account. Nothing moves before that
-- account takes it.
CREATE TABLE offers (
    instance_id INTEGER PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    to_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- None: an admin of a host where nobody logged in then.
    made_by_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX offers_by_receiver ON offers (to_id);
CREATE INDEX offers_by_maker ON offers (made_by_id);
