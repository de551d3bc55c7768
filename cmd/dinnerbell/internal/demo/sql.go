package demo

// joinIndex is for the demo's own join, with which the daemon's is compared.
const joinIndex = `CREATE INDEX demo_restaurant ON public.subscribers_restaurants (restaurant_id)`

// checkTables hold the notifications that the round expects and those that a
// consumer of the topic saw.
const checkTables = `
CREATE SCHEMA demo;
CREATE UNLOGGED TABLE demo.campaign (id text, restaurant text, body jsonb);
CREATE UNLOGGED TABLE demo.received (key text, value jsonb,
  campaign text GENERATED ALWAYS AS (value->>'adv_campaign_id') STORED,
  client text GENERATED ALWAYS AS (value->>'client_id') STORED);
`

// expectView is the join, done by Postgres on the subscriptions as they are.
const expectView = `
CREATE VIEW demo.expected AS
  SELECT DISTINCT c.id AS campaign, s.client_id AS client
  FROM demo.campaign c JOIN public.subscribers_restaurants s ON s.restaurant_id = c.restaurant;
CREATE VIEW demo.rows AS
  SELECT adv_campaign_id AS campaign, client_id AS client FROM public.subscribers_feedback;
`

const (
	countExpected = `SELECT count(*) FROM demo.expected`

	// missing pairs: not in the topic, and not in the table.
	countMissing = `
SELECT (SELECT count(*) FROM (SELECT campaign, client FROM demo.expected EXCEPT SELECT campaign, client FROM demo.received) x)
     + (SELECT count(*) FROM (SELECT campaign, client FROM demo.expected EXCEPT SELECT campaign, client FROM demo.rows) x)`

	// duplicates: all copies beyond the first.
	countDuplicates = `
SELECT (SELECT count(*) - count(DISTINCT (campaign, client)) FROM demo.received)
     + (SELECT count(*) - count(DISTINCT (campaign, client)) FROM demo.rows)`

	// unexpected: notified although not subscribed, or for a campaign that must
	// not notify.
	countUnexpected = `
SELECT (SELECT count(*) FROM (SELECT campaign, client FROM demo.received EXCEPT SELECT campaign, client FROM demo.expected) x)
     + (SELECT count(*) FROM (SELECT campaign, client FROM demo.rows EXCEPT SELECT campaign, client FROM demo.expected) x)`

	// different: records whose content is not the campaign's, whose key is not the
	// contract's, or that differ from their row.
	countDifferent = `
SELECT count(*) FROM demo.received r
LEFT JOIN demo.campaign c ON c.id = r.campaign
LEFT JOIN public.subscribers_feedback f ON f.adv_campaign_id = r.campaign AND f.client_id = r.client
WHERE c.body IS DISTINCT FROM r.value - 'client_id' - 'trigger_datetime_created'
   OR r.value IS DISTINCT FROM to_jsonb(f) - 'id' - 'feedback'
   OR r.key IS DISTINCT FROM replace(replace(f.adv_campaign_id, '%', '%25'), ':', '%3A')
                   || ':' || replace(replace(f.client_id, '%', '%25'), ':', '%3A')`
)
