-- How each node agent stands, and the times in which it gave no sign of life.

ALTER TABLE node ADD COLUMN heard_ms INTEGER NOT NULL DEFAULT 0;             -- when its last log entry came, collector's clock
ALTER TABLE node ADD COLUMN log_boot_ns INTEGER NOT NULL DEFAULT 0;          -- of that entry, node's clocks
ALTER TABLE node ADD COLUMN log_unix_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN boot_id TEXT NOT NULL DEFAULT '';
ALTER TABLE node ADD COLUMN stopped INTEGER NOT NULL DEFAULT 0;              -- the last it said is that it stopped in order
ALTER TABLE node ADD COLUMN bypassed INTEGER NOT NULL DEFAULT 0;             -- entry that began a bypass, plus 1; 0 = none goes on
ALTER TABLE node ADD COLUMN open_sessions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN redirected INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN agent_state BLOB NOT NULL DEFAULT x'';           -- encoded AgentState, as last signed
ALTER TABLE node ADD COLUMN certificate_not_after INTEGER NOT NULL DEFAULT 0; -- unix seconds, of the latest given out

-- What the rule that refused a connection says of it; `reason` is that of the coverage.
ALTER TABLE session ADD COLUMN rule_reason TEXT NOT NULL DEFAULT '';

CREATE TABLE node_gap (
    node_id      BLOB NOT NULL REFERENCES node (id),
    before_entry INTEGER NOT NULL,                -- first entry of its log after the gap
    kind         INTEGER NOT NULL,                -- enum NodeGap.Kind
    from_unix_ns INTEGER NOT NULL,
    to_unix_ns   INTEGER NOT NULL DEFAULT 0,      -- 0 = goes on
    PRIMARY KEY (node_id, before_entry, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_gap_by_time ON node_gap (node_id, from_unix_ns);
