-- text.sqlite: the words of exchanges. Made from the segments and made again from them when this schema changes or the file
-- is lost; so it has no migrations, and its writer does not stand in the way of ingest. Readers attach it as `words`.

-- rowid = exchange.id. Contentless: the words are in the index only, what they were part of is in exchange and segment.
--   asked   Operation.text and the parameters
--   error   the server's, or policy's
--   body    text in the bodies
-- A word is what Unicode calls letters and digits, so that pieces of SQL names, paths and addresses are found by themselves
-- ("orders" in public.orders_2024), and the whole of them as a phrase. Case and diacritics do not matter.
CREATE VIRTUAL TABLE exchange_text USING fts5 (
    asked, error, body,
    content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
);

-- One row: how far it is.
CREATE TABLE progress (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    next_segment INTEGER NOT NULL                 -- segments below are in
) STRICT;
INSERT INTO progress VALUES (1, 1);
