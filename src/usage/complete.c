/*
 * complete.c
 *		Since when has this server recorded all use of tokens?
 *
 * A revocation is final.  So a token is not revoked as idle while it may have been
 * used without a record: for a whole idle_timeout after use may have been lost.
 *
 *	- A crash loses the use since the last flush.  So does a stop that cannot save
 *	  it, and a start that cannot load it.
 *	- Use that finds no room in shared memory is dropped.
 *	- Use on a standby or a logical subscriber stays there until it is sent.  Whether
 *	  they verify tokens, and send, is not known here, so a setting says whether they
 *	  verify.
 *	- A server that was promoted, or recovered from a backup, does not know the use
 *	  on other servers.  The history file of its timeline was made at that time.
 *
 * A server that sends its use knows what comes back, which is less than all.
 *
 * These times are in shared memory, and survive a restart in the usage file.  Without
 * shared memory, a use is part of the caller's transaction, so neither a crash nor
 * want of room loses it, and only those standbys count that are connected now, and
 * those subscribers that exist now.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "usage/usage.h"

/* Of frequent losses, not each is noted. */
#define NOTE_INTERVAL USECS_PER_SEC

/* Use may have been lost until now. */
void
apitoken_note_loss(ApitokenLoss loss)
{
	TimestampTz now = GetCurrentTimestamp();

	if (apitoken_shared != NULL &&
		now >= (TimestampTz) pg_atomic_read_u64(&apitoken_shared->lost_at[loss]) + NOTE_INTERVAL)
		pg_atomic_write_u64(&apitoken_shared->lost_at[loss], now);
}

/*
 * Is a standby connected?  Programs that only receive WAL, such as pg_receivewal
 * and pg_basebackup, never report that they have applied any.
 */
static bool
standby_connected(void)
{
	for (int i = 0; i < max_wal_senders; i++)
	{
		WalSnd	   *sender = &WalSndCtl->walsnds[i];
		bool		applies;

		SpinLockAcquire(&sender->mutex);
		applies = sender->pid != 0 && !XLogRecPtrIsInvalid(sender->apply);
		SpinLockRelease(&sender->mutex);
		if (applies && compat_is_physical(sender))
			return true;
	}
	return false;
}

/* The time of the last promotion or recovery from a backup; 0 if there was none. */
static TimestampTz
promoted_at(void)
{
	TimeLineID	timeline = GetWALInsertionTimeLine();
	char		path[MAXPGPATH];
	struct stat file;

	if (timeline <= 1)
		return 0;
	TLHistoryFilePath(path, timeline);
	/* Nothing removes this file.  Without it, the time is not known. */
	return stat(path, &file) == 0 ? time_t_to_timestamptz(file.st_mtime) : GetCurrentTimestamp();
}

/* The launcher calls this regularly.  The time of a promotion survives pg_upgrade in the usage file only. */
void
apitoken_watch_losses(void)
{
	TimestampTz promoted;

	if (RecoveryInProgress())
		return;
	if (standby_connected())
		apitoken_note_loss(APITOKEN_LOST_ON_STANDBY);
	promoted = promoted_at();
	if (promoted > (TimestampTz) pg_atomic_read_u64(&apitoken_shared->lost_at[APITOKEN_LOST_BEFORE_PROMOTION]))
		pg_atomic_write_u64(&apitoken_shared->lost_at[APITOKEN_LOST_BEFORE_PROMOTION], promoted);
}

/*
 * Since when has this server recorded all use?  Returns 0 if there is no known
 * loss; otherwise sets `reason` to what happened last.  Not during recovery.
 */
TimestampTz
apitoken_complete_since(const char **reason)
{
	static const char *const losses[APITOKEN_LOSSES] = {
		[APITOKEN_LOST_IN_CRASH] = "use was lost in a crash or at a restart",
		[APITOKEN_LOST_FOR_ROOM] = "use was dropped because memory was full",
		[APITOKEN_LOST_ON_STANDBY] = "a standby was connected",
		[APITOKEN_LOST_ON_SUBSCRIBER] = "there was a logical subscriber",
		[APITOKEN_LOST_BEFORE_PROMOTION] = "the server was promoted or recovered from a backup",
	};
	/* others that may use the tokens: are there any now? */
	static bool (*const others[APITOKEN_LOSSES]) (void) = {
		[APITOKEN_LOST_ON_STANDBY] = standby_connected,
		[APITOKEN_LOST_ON_SUBSCRIBER] = apitoken_has_subscriber,
	};
	TimestampTz since = 0;

	*reason = "this server sends its use to another one";
	if (apitoken_sends(NULL))
		return GetCurrentTimestamp();
	*reason = NULL;
	for (int loss = 0; loss < APITOKEN_LOSSES; loss++)
	{
		TimestampTz at = apitoken_shared == NULL ? 0 : pg_atomic_read_u64(&apitoken_shared->lost_at[loss]);

		if (others[loss] != NULL)
		{
			if (!apitoken_standbys_verify)
				continue;
			if (others[loss]())
			{
				apitoken_note_loss(loss);
				at = GetCurrentTimestamp();
			}
		}
		if (loss == APITOKEN_LOST_BEFORE_PROMOTION)
			at = Max(at, promoted_at());
		if (at > since)
		{
			since = at;
			*reason = losses[loss];
		}
	}
	return since;
}
