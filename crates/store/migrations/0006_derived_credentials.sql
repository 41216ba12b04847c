-- What was derived from a credential ends with it.
ALTER TABLE api_tokens ADD COLUMN parent_id INTEGER REFERENCES api_tokens (id) ON DELETE CASCADE;
CREATE INDEX api_tokens_by_parent ON api_tokens (parent_id) WHERE parent_id IS NOT NULL;
ALTER TABLE user_keys ADD COLUMN token_id INTEGER REFERENCES api_tokens (id) ON DELETE CASCADE;
CREATE INDEX user_keys_by_token ON user_keys (token_id) WHERE token_id IS NOT NULL;

-- What an admin gave away counts while its maker is an admin. None: the host, or an earlier version.
ALTER TABLE password_resets ADD COLUMN created_by INTEGER REFERENCES users (id) ON DELETE CASCADE;
ALTER TABLE join_tokens ADD COLUMN created_by INTEGER REFERENCES users (id) ON DELETE CASCADE;

-- The last log-in at the OpenID Connect provider. Accounts from before this column get a full term.
ALTER TABLE users ADD COLUMN provider_ms INTEGER;
UPDATE users SET provider_ms = CAST(strftime('%s', 'now') AS INTEGER) * 1000
    WHERE external IS NOT NULL;

-- An issuer is kept without a slash at its end, so that both spellings mean the same account. Where
-- both have made one, the older has the VPSes and the quota, and stays the provider's; the newer one
-- keeps an identity that no provider has.
UPDATE users SET external = 'superseded ' || external
    WHERE external IS NOT NULL AND EXISTS (
        SELECT 1 FROM users AS older WHERE older.id < users.id AND
            rtrim(substr(older.external, 1, instr(older.external, ' ') - 1), '/')
                || substr(older.external, instr(older.external, ' '))
            = rtrim(substr(users.external, 1, instr(users.external, ' ') - 1), '/')
                || substr(users.external, instr(users.external, ' ')));
UPDATE users SET external = rtrim(substr(external, 1, instr(external, ' ') - 1), '/')
        || substr(external, instr(external, ' '))
    WHERE external LIKE '%/ %' AND external NOT LIKE 'superseded %';
