-- The role that `dinnerbell run` needs, and all that it needs. Run by the
-- owner of the tables after `dinnerbell setup`; add a password, and put your
-- names in the place of these where you have set others. dinnerbell's own tests
-- run with exactly these statements.

CREATE ROLE dinnerbell LOGIN REPLICATION;

-- In the database of source.url.
GRANT SELECT ON public.subscribers_restaurants TO dinnerbell;

-- In the database of sink.url.
GRANT SELECT, INSERT ON public.subscribers_feedback TO dinnerbell;
GRANT USAGE ON SEQUENCE public.subscribers_feedback_id_seq TO dinnerbell;
GRANT USAGE ON SCHEMA dinnerbell TO dinnerbell;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dinnerbell TO dinnerbell;
