-- Every page of the log is found by one of these; each ends with the row's number.
CREATE INDEX audit_by_action ON audit (action);
CREATE INDEX audit_by_actor ON audit (actor, action);
CREATE INDEX audit_by_object ON audit (object, action);
CREATE INDEX audit_by_time ON audit (at_ms);

-- Where the log begins since old entries were removed, and how large it is.
CREATE TABLE audit_state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- The last entry that was removed, and its hash; 0 and empty where none was.
    pruned_seq INTEGER NOT NULL,
    pruned_hash TEXT NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;

INSERT INTO audit_state (one, pruned_seq, pruned_hash, bytes)
    SELECT 1, 0, '', ifnull(sum(200 + octet_length(actor) + octet_length(address) + octet_length(action)
        + octet_length(object) + octet_length(result) + octet_length(detail)), 0) FROM audit;
