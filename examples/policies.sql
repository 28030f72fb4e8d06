-- policies.sql: policies that ask who is acting.  docs/policies.md explains them
-- one by one.  Run it in a database with the extension, as the role that will own
-- the tables:
--
--     psql -X -v ON_ERROR_STOP=1 -f examples/policies.sql

-- Articles belong to an organization.  Some are only for certain groups of users.
CREATE TABLE article (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id text NOT NULL DEFAULT apitoken.current_organization_id(),
    groups          text[] NOT NULL DEFAULT '{}',
    title           text NOT NULL
);
CREATE INDEX article_organization_id_idx ON article (organization_id);

-- Drafts belong to a user.  The user may submit them to an organization.
CREATE TABLE draft (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id      text NOT NULL DEFAULT apitoken.current_user_id(),
    submitted_to text,
    title        text NOT NULL
);
CREATE INDEX draft_user_id_idx ON draft (user_id);
CREATE INDEX draft_submitted_to_idx ON draft (submitted_to);

ALTER TABLE article ENABLE ROW LEVEL SECURITY;
ALTER TABLE draft ENABLE ROW LEVEL SECURITY;

-- Articles of the organizations where the caller has the permission.
CREATE POLICY article_read ON article FOR SELECT
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:read'))));
CREATE POLICY article_create ON article FOR INSERT
    WITH CHECK (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:create'))));
CREATE POLICY article_update ON article FOR UPDATE
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:update'))));
CREATE POLICY article_delete ON article FOR DELETE
    USING (organization_id = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:delete'))));

-- For all commands, in addition: an article without groups, or with a group of the caller.
CREATE POLICY article_groups ON article AS RESTRICTIVE
    USING (groups = '{}' OR groups && (SELECT apitoken.current_groups()));

-- A user's own drafts.  The tokens of an organization also read what is submitted to it.
CREATE POLICY draft_read ON draft FOR SELECT
    USING ((user_id = (SELECT apitoken.current_user_id())
            OR submitted_to = (SELECT apitoken.current_organization_id()))
           AND (SELECT apitoken.can('draft:read')));
CREATE POLICY draft_create ON draft FOR INSERT
    WITH CHECK (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:create')));
CREATE POLICY draft_update ON draft FOR UPDATE
    USING (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:update')));
CREATE POLICY draft_delete ON draft FOR DELETE
    USING (user_id = (SELECT apitoken.current_user_id()) AND (SELECT apitoken.can('draft:delete')));

-- A user may submit a draft only to an organization where they may create articles.
CREATE POLICY draft_submit ON draft AS RESTRICTIVE
    USING (true)
    WITH CHECK (submitted_to IS NULL
                OR submitted_to = ANY (ARRAY(SELECT apitoken.organizations_allowed('article:create'))));
