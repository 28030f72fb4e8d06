#!/bin/sh
#
# apitoken: manage and verify API tokens from a shell.  See apitoken(1).
#
# All SQL is text of this script.  What the user gives becomes a psql variable, which
# psql writes into the SQL as a quoted literal (:'name').  The text of a token is in
# no argument, environment, file or statement: psql sends it as data of COPY.  So it
# is in shell variables, which are not exported, and only the shell's own printf
# writes it.

# a traced shell would show the text of tokens
set +x
set -u
IFS=' 	
'
unset CDPATH PG_COLOR

version='@VERSION@'
command='' nl='
'

say() { printf '%s\n' "apitoken: $*" >&2; }
# `check` has the exit statuses of monitoring plugins
usage_error() {
	say "$*"
	printf "Try 'apitoken %s--help'.\n" "${command:+$command }" >&2
	[ "$command" = check ] && exit 3
	exit 2
}

case $(command -v printf) in
	*/*)
		say 'this shell has no printf of its own, and another program would show its arguments in the list of processes'
		exit 1
		;;
esac

# ---- help ---------------------------------------------------------------------

connection_help="
Connection:
  -h, --host HOST        server or directory of the socket
  -p, --port PORT        port
  -U, --username NAME    role to log in as
  -d, --dbname NAME      database, or a connection string such as 'service=NAME'
  -w, --no-password      never ask for a password
The PG* environment variables, the password file and the service file are used as by
psql."

# help_for COMMAND: its options also stand in the table below, and in its manual.
help_for() {
	case $1 in
		'')
			cat <<-'EOF'
				Usage: apitoken COMMAND [OPTION]...

				Manage and verify the API tokens of a PostgreSQL database.

				Commands:
				  list          list tokens
				  create        create a token
				  show          show everything about a token but its text
				  edit          change, suspend or resume a token
				  regenerate    give a token a new text
				  revoke        end a token
				  verify        verify the text of a token, from standard input
				  events        list what happened to tokens
				  check         check the set-up, as a monitoring plugin
				  grep          find the texts of tokens in files
				  import        import tokens of another system, from standard input
				  help          show the help of a command

				  --help        show this help, or that of a command
				  --version     show the version
			EOF
			;;
		list)
			cat <<-'EOF'
				Usage: apitoken list [OPTION]...

				List tokens, newest first, without the revoked ones.

				  --all               the revoked ones, too
				  --org ID            only tokens of this organization
				  --user ID           only personal tokens of this user
				  --label TEXT        only tokens whose label contains this text
				  --status STATUS     only this status: active, expiring, expired, suspended,
				                      policy_refused or revoked
				  --limit N           at most so many
				  --as USER           act as this user
				  --ids               only the ids, one a line
				  --json              a JSON array with all columns
			EOF
			;;
		create)
			cat <<-'EOF'
				Usage: apitoken create LABEL [OPTION]...

				Create a token, and print its text, this once.

				  --org ID            of this organization
				  --user ID           a personal token of this user
				  --as USER           act as this user; without --org it is their personal token
				  --description TEXT  description
				  --role ROLE         role of a token of an organization
				  --access ACCESS     read_only, full or custom
				  --permission P      a permission, such as article:read; may be repeated
				  --expires-in TIME   such as '90 days'; otherwise it never expires
				  --network CIDR      a network from which it is accepted; may be repeated
				  --rate-limit N      uses in a minute
				  --quota N           uses in all, or in a period
				  --quota-period P    day or month
				  --metadata JSON     an object for the application
				  --if-absent         if the owner has a usable token with this label, print
				                      no text and exit with 4, or with 0 and --json
				  --json              a JSON object: created, id, token, masked, expires_at
			EOF
			;;
		show)
			cat <<-'EOF'
				Usage: apitoken show ID [OPTION]...

				Show everything about a token but its text.

				  --as USER           act as this user
				  --json              a JSON object
			EOF
			;;
		edit)
			cat <<-'EOF'
				Usage: apitoken edit ID OPTION...

				Change a token. What is not named stays as it is.

				  --label TEXT        label
				  --description TEXT  description
				  --role ROLE         role of a token of an organization
				  --access ACCESS     read_only, full or custom
				  --permission P      a permission, instead of the present ones; may be repeated
				  --expires-in TIME   from now, such as '90 days'
				  --expires-at TIME   a date and time
				  --network CIDR      a network, instead of the present ones; may be repeated
				  --rate-limit N      uses in a minute
				  --quota N           uses in all, or in a period
				  --quota-period P    day or month
				  --metadata JSON     an object for the application
				  --no-description    remove the description
				  --no-expiry         it never expires
				  --no-network        it is accepted from everywhere
				  --no-rate-limit     remove the rate limit
				  --no-quota          remove the quota and its period
				  --no-quota-period   the quota is for the life of the token
				  --suspend           refuse it until it is resumed
				  --resume            accept it again
				  --end-overlap       end its previous texts
				  --as USER           act as this user
				  --json              a JSON object with the changed token
			EOF
			;;
		regenerate)
			cat <<-'EOF'
				Usage: apitoken regenerate ID [OPTION]...

				Give a token a new text, and print it, this once.

				  --overlap TIME      accept the old text for so long, such as '1 day';
				                      otherwise it ends at once
				  --expires-in TIME   a new expiry
				  --as USER           act as this user
				  --json              a JSON object: id, token, masked, expires_at
			EOF
			;;
		revoke)
			cat <<-'EOF'
				Usage: apitoken revoke ID [OPTION]...

				End a token for good. Its label must be typed on the terminal.

				  --yes LABEL         the label, instead of asking for it
				  --reason TEXT       why
				  --as USER           act as this user
			EOF
			;;
		verify)
			cat <<-'EOF'
				Usage: apitoken verify [OPTION]...

				Verify the text of a token, from standard input, and exit with 0 if it is valid
				and with 4 if it is not. This is a use of the token.

				  --permission P      may it do this?
				  --org ID            in this organization
				  --address IP        address of the client
				  --cost N            uses that this one counts as
				  --explain           the decision step by step, without a use of the token
				  --json              a JSON object; with --explain a JSON array
			EOF
			;;
		events)
			cat <<-'EOF'
				Usage: apitoken events [ID] [OPTION]...

				List what happened to tokens, newest first: to all, or to one.

				  --org ID            only this organization and its tokens
				  --user ID           only this user and their personal tokens
				  --action ACTION     only this action, such as create or revoke
				  --since TIME        only of this time until now, such as '7 days'
				  --limit N           at most so many; 100 unless it is given
				  --as USER           act as this user
				  --json              a JSON array with all columns
			EOF
			;;
		check)
			cat <<-'EOF'
				Usage: apitoken check [OPTION]...

				Check the set-up of the server and the database, as a monitoring plugin: exit
				with 0 if nothing is wrong, 1 for warnings, 2 for errors, 3 if the check failed.

				  --json              a JSON array of all findings
			EOF
			;;
		grep)
			cat <<-'EOF'
				Usage: apitoken grep [OPTION]... [FILE]...

				Find the texts of tokens in files, or in standard input, and exit with 0 if
				there are none and with 4 if there are. The texts are shown masked, with what
				the database knows of the tokens. Only the owner of the extension's tables
				and superusers may use it.

				  --json              a JSON array: file, line, masked, id, label, owner, status
			EOF
			;;
		import)
			cat <<-'EOF'
				Usage: apitoken import FORMAT [OPTION]...

				Import the tokens of another system from standard input, all of them or none.
				The input is CSV, and its first line names the columns: stored, and any of
				lookup_key, label, organization_id, user_id, role, access, permissions, salt,
				created_at, expires_at, last_used_at, revoked_at and metadata. FORMAT is one of
				apitoken.import_token(), such as sanctum or knox.

				  --org ID            organization of the rows that name no owner
				  --user ID           user of the rows that name no owner
				  --role ROLE         role of organizations' tokens whose rows name none
				  --access ACCESS     access of the rows that name none: read_only, full or custom
				  --permission P      a permission of the rows that name none; may be repeated
				  --json              a JSON array: row, id
			EOF
			;;
		*) return 1 ;;
	esac
	printf '%s\n' "$connection_help"
}

# ---- arguments ----------------------------------------------------------------

# Options of each command, by name: with a value (:), with a value and several times
# (+), or alone.
options_for() {
	case $1 in
		list) echo 'all org: user: label: status: limit: as: ids json' ;;
		create) echo 'org: user: as: description: role: access: permission+ expires-in: network+ rate-limit: quota: quota-period: metadata: if-absent json' ;;
		show) echo 'as: json' ;;
		edit) echo 'label: description: role: access: permission+ expires-in: expires-at: network+ rate-limit: quota: quota-period: metadata:' \
			'no-description no-expiry no-network no-rate-limit no-quota no-quota-period suspend resume end-overlap as: json' ;;
		regenerate) echo 'overlap: expires-in: as: json' ;;
		revoke) echo 'yes: reason: as:' ;;
		verify) echo 'permission: org: address: cost: explain json' ;;
		events) echo 'org: user: action: since: limit: as: json' ;;
		check) echo 'json' ;;
		grep) echo 'json' ;;
		import) echo 'org: user: role: access: permission+ json' ;;
		help) ;;
		*) return 1 ;;
	esac
}

digit='[0-9A-Za-z]'
digits=$digit$digit$digit$digit$digit
# an id and 8 characters of a secret: less than that is no secret
digits=$digits$digits$digits$digits$digits$digits

# refuse_token ARGUMENT: the text of a token, or its beginning, is not repeated.  (The
# end of a text that was cut in two cannot be recognized, so no message repeats an
# operand.)
refuse_token() {
	case $1 in
		*_[oO][rR][gG]_$digits* | *_[uU][sS][rR]_$digits*)
			say 'an argument has the text of a token. Arguments are in the list of processes, and in the history of the shell.'
			say "If others can see these, revoke the token. 'apitoken verify' reads the text from standard input."
			[ "$command" = check ] && exit 3
			exit 2
			;;
	esac
}

# number OPTION VALUE
number() {
	case $2 in
		'' | *[!0-9]*) usage_error "--$1 needs a number" ;;
	esac
}

# name_variable OPTION: set $variable to the name of its psql variable, which has no hyphen
name_variable() {
	case $1 in
		*-*) variable=${1%%-*}_${1#*-} ;;
		*) variable=$1 ;;
	esac
}

# The loop takes $count arguments off the front, and puts psql's to the end.
given='' options='' values_permission='' values_network='' n=0 plain='' operand='' only_operands='' span='' files=''
count=$#
while [ "$count" -gt 0 ]; do
	argument=$1
	shift
	count=$((count - 1))
	refuse_token "$argument"

	if [ -n "$only_operands" ]; then
		name=''
	else
		case $argument in
			--)
				only_operands=1
				continue
				;;
			--help | '-?')
				if [ "$command" = help ]; then command=''; fi
				help_for "$command"
				exit 0
				;;
			--version | -V)
				printf 'apitoken %s\n' "$version"
				exit 0
				;;
			--*=*) name=${argument%%=*} value=${argument#*=} attached=1 ;;
			--*) name=$argument attached='' ;;
			-[hpUd]?*) name=${argument%"${argument#??}"} value=${argument#??} attached=1 ;;
			-?*) name=$argument attached='' ;;
			*) name='' ;;
		esac
	fi

	# a command, or what it is about
	if [ -z "$name" ]; then
		if [ -z "$command" ] && [ -z "$only_operands" ]; then
			options=$(options_for "$argument") || usage_error 'there is no such command'
			command=$argument
		elif [ "$command" = grep ]; then
			# for "$@", a file is an argument of psql: the variable that has its name
			if ! { [ -f "$argument" ] || [ -p "$argument" ]; } || ! [ -r "$argument" ]; then
				say "this is no file that can be read: $argument"
				exit 1
			fi
			n=$((n + 1))
			set -- "$@" -v "file_$n=$argument"
			files="$files${files:+, }($n, :'file_$n')"
		elif [ -n "$plain" ]; then
			usage_error 'there are too many arguments'
		else
			plain=1 operand=$argument
		fi
		continue
	fi

	case $name in
		-h) name=--host ;;
		-p) name=--port ;;
		-U) name=--username ;;
		-d) name=--dbname ;;
		-w) name=--no-password ;;
	esac
	name=${name#--}
	case $name in
		*[!a-z-]* | '') kind=unknown ;;
		host | port | username | dbname) kind=connection ;;
		no-password) kind=password ;;
		*)
			case " $options " in
				*" $name "*) kind=alone ;;
				*" $name: "*) kind=once ;;
				*" $name+ "*) kind=often ;;
				*) kind=unknown ;;
			esac
			;;
	esac
	case $kind in
		unknown) usage_error "there is no option $argument${command:+ of $command}" ;;
		alone | password) [ -z "$attached" ] || usage_error "--$name takes no value" ;;
		*)
			if [ -z "$attached" ]; then
				[ "$count" -gt 0 ] || usage_error "--$name needs a value"
				value=$1
				shift
				count=$((count - 1))
				refuse_token "$value"
			fi
			;;
	esac
	name_variable "$name"
	given="$given $name"
	case $kind in
		connection) set -- "$@" "--$name=$value" ;;
		password) set -- "$@" --no-password ;;
		once)
			[ "$name" != limit ] || number "$name" "$value"
			[ "$name" != expires-in ] || span=$value
			set -- "$@" -v "$variable=$value"
			;;
		often)
			n=$((n + 1))
			set -- "$@" -v "${name}_$n=$value"
			case $name in
				permission) values_permission="$values_permission${values_permission:+, }:'permission_$n'" ;;
				network) values_network="$values_network${values_network:+, }:'network_$n'" ;;
			esac
			;;
	esac
done

has() {
	case " $given " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

# at_most_one OPTION...
at_most_one() {
	first=''
	for option; do
		has "$option" || continue
		[ -z "$first" ] || usage_error "--$first and --$option exclude each other"
		first=$option
	done
}

hex='[0-9A-Fa-f]'
hex4=$hex$hex$hex$hex
case $command in
	'') usage_error 'no command is given' ;;
	help)
		command=$operand
		help_for "$command" && exit
		command=''
		usage_error 'there is no such command'
		;;
	create)
		[ -n "$plain" ] || usage_error 'the label is missing'
		set -- "$@" -v "label=$operand"
		;;
	show | edit | regenerate | revoke)
		[ -n "$plain" ] || usage_error 'the id of the token is missing'
		;;
	import)
		[ -n "$plain" ] || usage_error 'the format is missing'
		at_most_one org user
		set -- "$@" -v "format=$operand"
		;;
	list | verify | check)
		[ -z "$plain" ] || usage_error "'$command' takes options only"
		;;
esac
case $command in
	show | edit | regenerate | revoke | events)
		if [ -n "$plain" ]; then
			# shellcheck disable=SC2254  # patterns
			case $operand in
				$hex4$hex4-$hex4-$hex4-$hex4-$hex4$hex4$hex4) set -- "$@" -v "id=$operand" ;;
				*) usage_error "this is not the id of a token, which 'apitoken list' shows" ;;
			esac
		fi
		;;
esac
at_most_one json ids
at_most_one cost explain
at_most_one suspend resume
at_most_one expires-in expires-at no-expiry
at_most_one description no-description
at_most_one network no-network
at_most_one rate-limit no-rate-limit
at_most_one quota no-quota
at_most_one quota-period no-quota-period no-quota

# ---- psql ---------------------------------------------------------------------

# The encoding of the arguments and of the output is the locale's, as in psql's own
# sessions.
export PGCLIENTENCODING="${PGCLIENTENCODING:-auto}" PGAPPNAME="${PGAPPNAME:-apitoken}"

# run ARGUMENT...: psql, with its script on the standard input.  The errors have the
# SQLSTATE (VERBOSITY), without the last line, which names a file of the server's source.
run() {
	exec 4>&1
	status=$(
		{
			{
				command psql -X -q -P pager=off -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -v SHOW_CONTEXT=never "$@" 3>&-
				echo $? >&3
			} 2>&1 >&4 4>&- | sed '/^[^ ].*, [^ ]*\.[chly]:[0-9]*$/d' >&2 3>&- 4>&-
		} 3>&1
	)
	exec 4>&-
	case $status in
		0) return 0 ;;
		# psql's status for a connection that failed or was lost
		2) return 3 ;;
		*) return 1 ;;
	esac
}

# answer ARGUMENT...: the same, for a script that prints our exit status first.  What
# follows is printed if the script ended well, so after COMMIT.
answer() {
	output=$(run "$@") || return
	case $output in
		*"$nl"*)
			if ! printf '%s\n' "${output#*"$nl"}"; then
				say 'the answer could not be written'
				return 1
			fi
			;;
	esac
	case ${output%%"$nl"*} in
		[0-9]) return "${output%%"$nl"*}" ;;
		*) return 1 ;;
	esac
}

# sql LINE...: echo would interpret backslashes
sql() { printf '%s\n' "$@"; }

# SQL that all commands begin with.  READ COMMITTED: each statement sees what others
# have committed, and use is recorded without preload.
begin() {
	cat <<-'EOF'
		BEGIN ISOLATION LEVEL READ COMMITTED;
		SET LOCAL search_path = pg_catalog, pg_temp;
	EOF
	! has as || sql "SELECT apitoken.act_as(:'as') AS acting \\gset"
}

# not_found: SQL that ends a script if :found is false
not_found() {
	cat <<-'EOF'
		\if :found
		\else
			\warn 'apitoken: token does not exist or permission denied'
			\echo 1
			\q
		\endif
	EOF
}

# add OPTION SQL: if the option was given, $list has SQL and its value
list=''
add() {
	name_variable "$1"
	! has "$1" || list="$list${list:+, }$2 :'$variable'"
}
# settings JOIN: what create and edit have in common, as name JOIN value
settings() {
	add description "description $1"
	add role "role $1"
	add access "access $1"
	[ -z "$values_permission" ] || list="$list${list:+, }permissions $1 ARRAY[$values_permission]::text[]"
	[ -z "$values_network" ] || list="$list${list:+, }allowed_networks $1 ARRAY[$values_network]::cidr[]"
	add rate-limit "rate_limit_per_minute $1"
	add quota "quota $1"
	add quota-period "quota_period $1"
	add metadata "metadata $1"
}
# erase OPTION COLUMN
erase() { ! has "$1" || list="$list${list:+, }$2 = NULL"; }

# rows SELECT: a table, or an array
rows() {
	if has json; then
		sql '\pset format unaligned' '\pset tuples_only on' "SELECT coalesce(json_agg(to_json(t)), '[]') FROM ($1) t;"
	else
		printf '%s;\n' "$1"
	fi
}
# row SELECT: one row, or an object
row() {
	if has json; then
		sql '\pset format unaligned' '\pset tuples_only on' "SELECT to_json(t) FROM ($1) t;"
	else
		sql '\pset expanded on' '\pset tuples_only on' "$1;"
	fi
}

# issue FUNCTION: SQL that calls create_token or regenerate_token with $list
issue() {
	sql "SELECT token, id, json_build_object($2'id', id, 'token', token, 'masked', masked, 'expires_at', expires_at) AS json
		FROM apitoken.$1($list) \\gset"
}
issued() {
	if has json; then
		sql '\echo 0' '\echo :json'
	else
		sql '\echo 0' '\echo :token' "\\warn 'apitoken: token' :id '$1. Its text is shown this once.'"
	fi
}

list_tokens() {
	begin
	! has status || sql "SELECT count(*) AS checked FROM apitoken.list_tokens(status => :'status', page_size => 1) \\gset"
	if has json; then
		columns='*'
	elif has ids; then
		sql '\pset format unaligned' '\pset tuples_only on'
		columns='id'
	else
		columns='id, label, coalesce(organization_id, user_id) AS owner, role, access, status, expires_at::date AS expires, last_used'
	fi
	where=true
	has all || has status || where='revoked_at IS NULL'
	! has org || where="$where AND organization_id = :'org'"
	! has user || where="$where AND user_id = :'user'"
	! has label || where="$where AND strpos(lower(label), lower(:'label')) > 0"
	! has status || where="$where AND status = :'status'"
	if has limit; then limit="LIMIT :'limit'"; else limit=''; fi
	rows "SELECT $columns FROM apitoken.tokens WHERE $where ORDER BY tokens.id DESC $limit"
	sql 'COMMIT;'
}

create_token() {
	begin
	list=":'label'"
	add org 'organization_id =>'
	add user 'user_id =>'
	add expires-in 'expires_in =>'
	settings '=>'
	if has if-absent; then
		owner=''
		! has org || owner="$owner AND organization_id = :'org'"
		! has user || owner="$owner AND user_id = :'user'"
		look="SELECT count(*) > 0 AS found, coalesce(bool_and(status IN ('active', 'expiring')), false) AS usable,
			max(status) AS status, max(masked) AS masked, max(id::text) AS id,
			json_agg(json_build_object('created', false, 'id', id, 'token', NULL, 'masked', masked, 'expires_at', expires_at))->0 AS json
			FROM apitoken.tokens WHERE label = :'label' AND revoked_at IS NULL ${owner:-AND user_id = apitoken.current_user_id()} \\gset"
		sql "$look" '\set failed off' '\if :found' '\else' 'SAVEPOINT before_creation;' '\set ON_ERROR_STOP off'
		issue create_token "'created', true, "
		# another session may have created it meanwhile: psql has shown its error, so say so
		cat <<-EOF
			\\set failed :ERROR
			\\set state :SQLSTATE
			\\set ON_ERROR_STOP on
			\\if :failed
				ROLLBACK TO before_creation;
				SELECT :'state' = '23505' AS in_use \\gset
				\\if :in_use
					$look
					\\if :found
						\\warn 'apitoken: another session has created it meanwhile'
					\\endif
				\\endif
			\\endif
			\\endif
			COMMIT;
			\\if :found
				\\if :usable
		EOF
		if has json; then
			sql '\echo 0' '\echo :json'
		else
			sql '\echo 4' "\\warn 'apitoken: token' :id 'has this label already:' :masked"
		fi
		cat <<-'EOF'
				\else
					\warn 'apitoken: token' :id 'has this label, but its status is' :status
					\echo 1
				\endif
			\elif :failed
				\echo 1
			\else
		EOF
		issued 'is created'
		sql '\endif'
	else
		issue create_token "'created', true, "
		sql 'COMMIT;'
		issued 'is created'
	fi
}

show_token() {
	begin
	sql "SELECT count(*) > 0 AS found FROM apitoken.tokens WHERE id = :'id' \\gset"
	not_found
	sql '\echo 0'
	row "SELECT * FROM apitoken.tokens WHERE id = :'id'"
	sql 'COMMIT;'
}

# changes: sets $list to the assignments of an UPDATE
changes() {
	add label 'label ='
	settings '='
	add expires-at 'expires_at ='
	! has expires-in || list="$list${list:+, }expires_at = (now() AT TIME ZONE 'UTC' + :'expires_in'::interval) AT TIME ZONE 'UTC'"
	erase no-description description
	erase no-expiry expires_at
	erase no-network allowed_networks
	erase no-rate-limit rate_limit_per_minute
	erase no-quota quota
	erase no-quota quota_period
	erase no-quota-period quota_period
	erase resume suspended_at
	! has suspend || list="$list${list:+, }suspended_at = coalesce(suspended_at, now())"
}
edit_token() {
	begin
	if [ -n "$list" ]; then
		sql "WITH edited AS (UPDATE apitoken.tokens SET $list WHERE id = :'id' RETURNING id) SELECT count(*) > 0 AS found FROM edited \\gset"
		not_found
	fi
	! has end-overlap || sql "SELECT apitoken.end_overlap(:'id') AS ended \\gset"
	sql '\echo 0'
	row "SELECT * FROM apitoken.tokens WHERE id = :'id'"
	sql 'COMMIT;'
}

regenerate_token() {
	begin
	list=":'id'"
	add overlap 'overlap =>'
	add expires-in 'expires_in =>'
	issue regenerate_token ''
	sql 'COMMIT;'
	issued 'has a new text'
}

revoke_token() {
	begin
	list=":'id', confirm_label => :'yes'"
	add reason 'reason =>'
	# the label of a personal token is not checked by revoke_token()
	sql "SELECT count(*) > 0 AS found, coalesce(bool_and(label = :'yes'), false) AS same FROM apitoken.tokens WHERE id = :'id' \\gset"
	not_found
	cat <<-EOF
		\\if :same
		\\else
			\\warn 'apitoken: this is not the label of the token; nothing was revoked'
			\\echo 1
			\\q
		\\endif
		SELECT CASE WHEN apitoken.revoke_token($list) THEN 'is revoked' ELSE 'was revoked before' END AS outcome \\gset
		COMMIT;
		\\echo 0
		\\warn 'apitoken: token' :id :outcome
	EOF
}

# what the person sees who is asked for the label
describe_token() {
	begin
	sql "SELECT count(*) > 0 AS found FROM apitoken.tokens WHERE id = :'id' \\gset"
	not_found
	cat <<-'EOF'
		\echo 0
		\pset expanded on
		\pset tuples_only on
		SELECT label, coalesce(organization_id, user_id) AS owner, masked, status, last_used FROM apitoken.tokens WHERE id = :'id';
		COMMIT;
	EOF
}

list_events() {
	begin
	if has json; then
		columns='*'
	else
		columns="date_trunc('second', at) AS at, action, token_id, details->>'label' AS label, coalesce(organization_id, user_id) AS owner,
			actor, database_user, client_address"
	fi
	where=true
	[ -z "$plain" ] || where="$where AND token_id = :'id'"
	! has org || where="$where AND organization_id = :'org'"
	! has user || where="$where AND user_id = :'user'"
	! has action || where="$where AND action = :'action'"
	! has since || where="$where AND at >= now() - :'since'::interval"
	if has limit; then limit="LIMIT :'limit'"; else limit='LIMIT 100'; fi
	rows "SELECT $columns FROM apitoken.events WHERE $where ORDER BY events.id DESC $limit"
	sql 'COMMIT;'
}

# read_text: the text of a token; nothing if what was read cannot be one
read_text() {
	if [ -t 0 ]; then head -n 1; else head -c 4096; fi |
		LC_ALL=C awk '{ sub(/\r$/, ""); n += NF; if (NF > 0) text = $1 }
			END { if (n == 1 && text ~ /^[0-9A-Za-z_|.+\/=-]+$/ && length(text) <= 512) print text }'
}

# The text is data of COPY, which no log and no view shows.  Where no temporary table
# can be made (a standby, no privilege), it is a literal, which the library masks: the
# first call loads it.  Then COPY and its data are a comment: psql has no other way to
# skip data.
verify_token() {
	begin
	cat <<-'EOF'
		SELECT apitoken.current_token_id() AS loaded \gset
		SELECT current_setting('transaction_read_only')::boolean OR NOT has_database_privilege(current_database(), 'TEMP') AS in_statement,
			current_setting('apitoken.mask_logs')::boolean AS masked \gset
		\if :in_statement
			\if :masked
			\else
				\warn 'apitoken: the text would be in the log of the server, because no temporary table can be made here and apitoken.mask_logs is off'
				\echo 1
				\q
			\endif
			\set comment '/*'
	EOF
	if [ -n "$text" ]; then printf "\\set text '''%s'''\n" "$text"; else sql '\set text NULL'; fi
	cat <<-'EOF'
		\else
			CREATE TEMPORARY TABLE apitoken_text (token text) ON COMMIT DROP;
			\set comment ''
			\set text '(SELECT token FROM pg_temp.apitoken_text)'
		\endif
		:comment COPY pg_temp.apitoken_text FROM STDIN;
	EOF
	if [ -n "$text" ]; then printf '%s\n' "$text"; else sql '\N'; fi
	sql '\.' '-- */'

	list=':text'
	add permission 'permission =>'
	add org 'organization_id =>'
	add address 'client_address =>'
	if has explain; then
		sql "SELECT json_agg(to_json(v)) AS answer, CASE WHEN bool_and(passed) THEN 0 ELSE 4 END AS code FROM apitoken.explain_verify($list) v \\gset"
		table="SELECT * FROM json_to_recordset(:'answer') AS v (step integer, name text, passed boolean, detail text)"
	else
		add cost 'cost =>'
		sql "SELECT to_json(v) AS answer, CASE WHEN valid THEN 0 ELSE 4 END AS code FROM apitoken.verify($list) v \\gset"
		table="SELECT verdict, token_id, label, coalesce(organization_id, user_id) AS owner, role, access, permissions, groups,
			expires_at, remaining, retry_after, secret FROM json_populate_record(NULL::apitoken.verification, :'answer')"
	fi
	sql '\echo :code'
	if has json; then
		sql '\echo :answer'
	else
		has explain || sql '\pset expanded on' '\pset tuples_only on'
		sql "$table;"
	fi
	sql 'COMMIT;'
}

# One query, because each call reads all tokens.
check_setup() {
	begin
	cat <<-'EOF'
		\pset format unaligned
		\pset tuples_only on
		SELECT count(*) FILTER (WHERE level = 'error') AS errors, count(*) FILTER (WHERE level = 'warning') AS warnings,
			count(*) FILTER (WHERE level = 'notice') AS notices, json_agg(to_json(f)) AS findings FROM apitoken.check_setup() f \gset
		SELECT CASE WHEN :errors > 0 THEN 9 WHEN :warnings > 0 THEN 8 ELSE 0 END AS code,
			CASE WHEN :errors > 0 THEN 'CRITICAL' WHEN :warnings > 0 THEN 'WARNING' ELSE 'OK' END AS word \gset
		\echo :code
	EOF
	if has json; then
		sql '\echo :findings'
	else
		cat <<-'EOF'
			\echo 'APITOKEN' :word '- errors:' :errors 'warnings:' :warnings 'notices:' :notices
			SELECT concat(level, ': ', subject, ': ', message, chr(10) || '    ' || hint)
			FROM ROWS FROM (json_to_recordset(:'findings') AS (level text, subject text, message text, hint text)) WITH ORDINALITY AS f (level, subject, message, hint, n)
			WHERE level <> 'ok' ORDER BY array_position('{error,warning,notice}', level), n;
		EOF
	fi
	sql 'COMMIT;'
}

# candidates ARGUMENT...: lines of COPY with the number of the file, the number of the
# line, and a word that looks like a token; from the files among psql's arguments.  If
# one cannot be read after all, the line 'unreadable' is an error of COPY.
candidates() {
	number=0
	for argument; do
		case $argument in
			file_*=*)
				number=$((number + 1))
				scan <"${argument#*=}" || sql unreadable
				;;
		esac
	done
	[ "$number" -gt 0 ] || scan
}
scan() {
	{
		LC_ALL=C grep -aonE '[0-9A-Za-z_]+_(org|usr)_[0-9A-Za-z_]{71,}' || [ $? -eq 1 ] || sql unreadable
	} | sed "s/^\([0-9]*\):/$number	\1	/"
}

find_tokens() {
	begin
	sql 'CREATE TEMPORARY TABLE apitoken_text (file integer, line bigint, token text) ON COMMIT DROP;' 'COPY pg_temp.apitoken_text FROM STDIN;'
	candidates "$@"
	sql '\.'
	cat <<-EOF
		SELECT CASE WHEN count(*) > 0 THEN 4 ELSE 0 END AS code FROM pg_temp.apitoken_text t, apitoken.find_tokens(t.token) \\gset
		\\echo :code
	EOF
	rows "SELECT f.name AS file, t.line, found.masked, found.id, k.label, coalesce(k.organization_id, k.user_id) AS owner, k.status
		FROM pg_temp.apitoken_text t JOIN (VALUES ${files:-(0, '-')}) f (n, name) ON f.n = t.file, apitoken.find_tokens(t.token) found
		LEFT JOIN apitoken.tokens k ON k.id = found.id ORDER BY t.file, t.line, found.id"
	sql 'COMMIT;'
}

# Columns of the input of import.
import_columns='stored lookup_key label organization_id user_id role access permissions salt created_at expires_at last_used_at revoked_at metadata'

# read_header: set $header to the columns that the first line of the input names
read_header() {
	IFS= read -r line || [ -n "$line" ] || usage_error 'standard input is empty'
	byte_order_mark=$(printf '\357\273\277')
	line=${line#"$byte_order_mark"}
	line=${line%"$(printf '\r')"}
	header=''
	while [ -n "$line" ]; do
		name=${line%%,*}
		case $line in *,*) line=${line#*,} ;; *) line='' ;; esac
		name=${name#\"} name=${name%\"}
		case "/$name/" in
			//* | */*/*/* | *[!a-z_/]*) name=unknown ;;
		esac
		case " $import_columns " in
			*" $name "*) ;;
			*) usage_error "the first line of the input must name columns of the CSV, among these: $import_columns" ;;
		esac
		case ", $header," in
			*", $name,"*) usage_error "the first line of the input names a column twice: $name" ;;
		esac
		header="$header${header:+, }$name"
	done
	case ", $header," in
		*', stored,'*) ;;
		*) usage_error 'the first line of the input does not name the column "stored"' ;;
	esac
}

# The rows are data of COPY, so what the other system stores is in no statement.
import_tokens() {
	begin
	columns=''
	for name in $import_columns; do columns="$columns, $name text"; done
	sql "CREATE TEMPORARY TABLE apitoken_import (n bigint GENERATED ALWAYS AS IDENTITY, format text DEFAULT :'format', id uuid$columns) ON COMMIT DROP;"
	sql "COPY pg_temp.apitoken_import ($header) FROM STDIN (FORMAT csv);"
	# the last line ends as the others do
	LC_ALL=C awk '{ sub(/\r$/, ""); print }'
	sql '\.'
	for name in org user; do
		! has $name || sql "UPDATE pg_temp.apitoken_import SET $(owner_column $name) = :'$name' WHERE organization_id IS NULL AND user_id IS NULL;"
	done
	! has role || sql "UPDATE pg_temp.apitoken_import SET role = :'role' WHERE role IS NULL AND organization_id IS NOT NULL;"
	! has access || sql "UPDATE pg_temp.apitoken_import SET access = :'access' WHERE access IS NULL;"
	[ -z "$values_permission" ] ||
		sql "UPDATE pg_temp.apitoken_import SET permissions = (ARRAY[$values_permission]::text[])::text WHERE permissions IS NULL;"
	cat <<-'EOF'
		DO $$
		DECLARE
			r record;
			code text;
			problem text;
			reason text;
			advice text;
		BEGIN
			FOR r IN SELECT i.*, i.ctid FROM pg_temp.apitoken_import i ORDER BY n LOOP
				UPDATE pg_temp.apitoken_import SET id = apitoken.import_token(r.format, r.stored, r.lookup_key, r.label, r.organization_id, r.user_id,
					r.role, r.access, r.permissions::text[], r.salt, r.created_at::timestamptz, r.expires_at::timestamptz,
					r.last_used_at::timestamptz, r.revoked_at::timestamptz, coalesce(r.metadata, '{}')::jsonb)
				WHERE ctid = r.ctid;
			END LOOP;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, problem = MESSAGE_TEXT, reason = PG_EXCEPTION_DETAIL, advice = PG_EXCEPTION_HINT;
			problem := format('row %s: %s', r.n, problem);
			reason := concat_ws(' ', nullif(reason, ''), 'No token was imported.');
			IF advice <> '' THEN
				RAISE EXCEPTION USING ERRCODE = code, MESSAGE = problem, DETAIL = reason, HINT = advice;
			END IF;
			RAISE EXCEPTION USING ERRCODE = code, MESSAGE = problem, DETAIL = reason;
		END $$;
		\echo 0
	EOF
	if has json; then
		rows 'SELECT n AS row, id FROM pg_temp.apitoken_import ORDER BY n'
	else
		rows 'SELECT count(*) AS imported FROM pg_temp.apitoken_import'
	fi
	sql 'COMMIT;'
}
owner_column() { case $1 in org) echo organization_id ;; user) echo user_id ;; esac; }

# ---- commands -----------------------------------------------------------------

case $command in
	list) list_tokens | run "$@" ;;
	create) create_token | answer "$@" ;;
	show) show_token | answer "$@" ;;
	edit)
		# other commands leave this to the server
		case $span in
			'' | *[!0-9]*) ;;
			*) usage_error "--expires-in needs a unit, such as '30 days'" ;;
		esac
		changes
		[ -n "$list" ] || has end-overlap || usage_error 'no change is given'
		edit_token | answer "$@"
		;;
	regenerate) regenerate_token | answer "$@" ;;
	revoke)
		if ! has yes; then
			[ -t 0 ] || usage_error 'there is no terminal to ask for the label on: give --yes LABEL'
			describe_token | answer "$@" >&2 || exit
			printf 'Type its label to revoke this token: ' >&2
			IFS= read -r label || exit 1
			refuse_token "$label"
			set -- "$@" -v "yes=$label"
		fi
		revoke_token | answer "$@"
		;;
	verify)
		if [ -t 0 ]; then
			terminal=$(stty -g)
			trap 'stty "$terminal"' EXIT
			trap 'exit 130' INT TERM HUP
			# first: what is typed or pasted early must not be shown either
			stty -echo
			printf 'Text of the token: ' >&2
			text=$(read_text)
			stty "$terminal"
			trap - EXIT INT TERM HUP
			echo >&2
		else
			text=$(read_text)
		fi
		verify_token | answer "$@"
		;;
	events) list_events | run "$@" ;;
	grep) find_tokens "$@" | answer "$@" ;;
	import)
		read_header
		import_tokens | answer "$@"
		;;
	check)
		# 8 and 9 are our own, so that a failure is no warning
		check_setup | answer "$@"
		case $? in
			0) exit 0 ;;
			8) exit 1 ;;
			9) exit 2 ;;
			*)
				sql 'APITOKEN UNKNOWN - the check failed'
				exit 3
				;;
		esac
		;;
esac
