-- The daemon's tables of layout 3, as setup made them. Kept for TestSetupBringsEachLayoutUp.
CREATE SCHEMA IF NOT EXISTS dinnerbell;
CREATE TABLE IF NOT EXISTS dinnerbell.lane (
  lane integer NOT NULL,
  epoch bigint NOT NULL DEFAULT 0, -- counts owners
  seq bigint NOT NULL DEFAULT 0, -- P: the last decided step
  next_offset bigint NOT NULL, -- of the campaigns partition
  cluster_id text NOT NULL, -- the Kafka that the positions count in
  campaigns_topic_id text NOT NULL,
  notifications_topic_id text NOT NULL,
  progress_topic_id text NOT NULL,
  shipped bigint NOT NULL DEFAULT 0, -- K as of the last step: the progress topic may be ahead, never behind
  notifications_ends bigint[] NOT NULL DEFAULT '{}'::bigint[], -- per partition: the notifications topic reached this end, it may never be shorter
  notified bigint NOT NULL DEFAULT 0, -- notifications decided so far
  expired bigint NOT NULL DEFAULT 0, -- campaigns that were over on arrival
  dead bigint NOT NULL DEFAULT 0, -- messages refused
  source_id text NOT NULL DEFAULT ''::text, -- the source in which source_lsn counts
  source_lsn bigint NOT NULL DEFAULT 0, -- subscription changes up to here are handled for late subscribers; 0: none
  PRIMARY KEY (lane)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS dinnerbell.campaign (
  adv_campaign_id text NOT NULL,
  restaurant_id text NOT NULL,
  lane integer NOT NULL, -- delivers it
  version bigint NOT NULL, -- raised whenever something else is to be delivered
  msg_lane integer NOT NULL, -- of the newest message, an identical repeat too: its partition,
  msg_offset bigint NOT NULL, -- its offset
  msg_time bigint NOT NULL, -- and its time in milliseconds, as Kafka gave it
  fingerprint bytea NOT NULL, -- of all eight fields: an identical repeat is seen as one
  adv_campaign_content text NOT NULL,
  adv_campaign_owner text NOT NULL,
  adv_campaign_owner_contact text NOT NULL,
  adv_campaign_datetime_start bigint NOT NULL,
  adv_campaign_datetime_end bigint NOT NULL,
  datetime_created bigint NOT NULL,
  state text NOT NULL,
  cursor bytea NOT NULL, -- packed id of the last client looked at
  contested boolean NOT NULL, -- somebody may have been notified before this version
  accepted_at timestamp with time zone NOT NULL DEFAULT now(),
  audience bigint, -- subscribers when it was accepted or joined; NULL: not counted, or all are in notified and already
  notified bigint NOT NULL DEFAULT 0, -- clients whom it notified, over all versions
  already bigint NOT NULL DEFAULT 0, -- clients whom this version left out because they had the campaign from elsewhere
  approved boolean NOT NULL DEFAULT false, -- an operator let it go although its audience exceeds limits.max_audience
  operator_time bigint NOT NULL DEFAULT 0, -- milliseconds, of an operator's last command; after a cancel only a later message revives it
  operator text NOT NULL DEFAULT ''::text, -- that command, and who gave it
  started_at timestamp with time zone, -- of its first step; NULL: accepted_at, where a step has served it
  finished_at timestamp with time zone, -- of the step that finished it; NULL: accepted_at; from its end on: the end cut it off
  CONSTRAINT campaign_state_check CHECK (state IN ('pending', 'finished', 'expired', 'rejoin', 'parked', 'paused', 'cancelled')),
  PRIMARY KEY (adv_campaign_id, restaurant_id)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS dinnerbell.outbox (
  lane integer NOT NULL,
  seq bigint NOT NULL,
  notifications integer NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (lane, seq)
);
ALTER TABLE dinnerbell.outbox ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS dinnerbell.layout (
  version integer NOT NULL
);
CREATE INDEX IF NOT EXISTS campaign_pending ON dinnerbell.campaign (lane, adv_campaign_datetime_start) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS campaign_operator ON dinnerbell.campaign (lane, operator_time) WHERE operator_time > 0;
CREATE INDEX IF NOT EXISTS campaign_held ON dinnerbell.campaign (lane) WHERE state IN ('parked', 'paused');
INSERT INTO dinnerbell.layout SELECT 3 WHERE NOT EXISTS (SELECT FROM dinnerbell.layout);
