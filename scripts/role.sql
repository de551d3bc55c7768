-- Creates the role for `dinnerbell run` with exactly the rights that it needs.
-- A superuser (CREATE ROLE … REPLICATION needs one) runs this script after `dinnerbell setup`. Add a
-- password, and replace these names where your configuration has others.
-- dinnerbell's own tests run with exactly these statements.

CREATE ROLE dinnerbell LOGIN REPLICATION;

-- In the database of source.url.
GRANT SELECT ON public.subscribers_restaurants TO dinnerbell;

-- In the database of sink.url.
GRANT SELECT, INSERT ON public.subscribers_feedback TO dinnerbell;
GRANT USAGE ON SEQUENCE public.subscribers_feedback_id_seq TO dinnerbell;
GRANT USAGE ON SCHEMA dinnerbell TO dinnerbell;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dinnerbell TO dinnerbell;
