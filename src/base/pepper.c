/*
 * pepper.c
 *		Read the peppers from the pepper file.
 *
 * A line "n:hex" has the pepper n.  A line "name:hex" has a key of another system,
 * whose tokens were imported.
 *
 * Each use of a pepper calls stat() on the file, and reads the file again if it
 * changed, so a new pepper takes effect without a reload.  A check hook is not
 * used to read the file.  If one failed while the server starts, the setting
 * would silently stay empty, and new digests would have no pepper.
 *
 * Loading does not raise an error but returns the problem, because a real digest
 * must raise it, but a decoy digest must not.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "storage/fd.h"
#include "utils/memutils.h"

/* macOS has other names for these members. */
#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

#define PEPPER_FILE_MAX (64 * 1024)
#define PEPPER_BYTES_MIN 16

/* minimum length of a line: "a:", the shortest key with a name and a line feed */
#define PEPPER_LINE_MIN (2 + 2 + 1)

/* A loaded pepper file.  It is one allocation, which one explicit_bzero() erases. */
typedef struct PepperFile
{
	struct stat identity;		/* the file's status before it was read */
	size_t		size;			/* of this allocation */
	char	   *path;			/* within this allocation */
	const ApitokenPepper *highest;	/* used for new digests */
	int			count;			/* of peppers */
	int			key_count;		/* of keys with a name, which are the last of the array */
	int			room;			/* of the array */
	ApitokenPepper peppers[FLEXIBLE_ARRAY_MEMBER];
} PepperFile;

typedef enum PepperFault
{
	FAULT_ACCESS,
	FAULT_NOT_REGULAR,
	FAULT_OWNER,
	FAULT_MODE,
	FAULT_TOO_LARGE,
	FAULT_CHANGED,
	FAULT_LINE,
	FAULT_DUPLICATE,
	FAULT_EMPTY
} PepperFault;

/* Why the peppers could not be loaded. */
typedef struct PepperProblem
{
	PepperFault fault;
	int			error_number;	/* for FAULT_ACCESS */
	int			line;			/* for FAULT_LINE and FAULT_DUPLICATE */
} PepperProblem;

/* the loaded file, in TopMemoryContext; NULL if none is loaded */
static PepperFile *loaded = NULL;

static bool
pepper_file_is_set(void)
{
	return apitoken_pepper_file != NULL && apitoken_pepper_file[0] != '\0';
}

static void
wipe_peppers(PepperFile *file)
{
	explicit_bzero(file, file->size);
	pfree(file);
}

/*
 * Is the file unchanged?  The status change time (ctime) shows changes of the
 * permissions, and changes that were hidden by resetting the modification time.
 */
static bool
same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev &&
		a->st_ino == b->st_ino &&
		a->st_size == b->st_size &&
		a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
		a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
		a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
		a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Check the file's owner and permissions by the rules for ssl_key_file, and its type and size. */
static bool
check_file(const struct stat *file, PepperProblem *problem)
{
	uid_t		server = geteuid();

	if (!S_ISREG(file->st_mode))
		problem->fault = FAULT_NOT_REGULAR;
	else if (file->st_uid != server && file->st_uid != 0)
		problem->fault = FAULT_OWNER;
	else if (file->st_uid == server && (file->st_mode & (S_IRWXG | S_IRWXO)) != 0)
		problem->fault = FAULT_MODE;
	else if (file->st_uid == 0 && (file->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0)
		problem->fault = FAULT_MODE;
	else if (file->st_size > PEPPER_FILE_MAX)
		problem->fault = FAULT_TOO_LARGE;
	else
		return true;
	return false;
}

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Parse the hexadecimal key in a line. */
static bool
parse_key(const char *digits, size_t length, int min, ApitokenPepper *pepper)
{
	if (length % 2 != 0 || length < 2 * min || length > 2 * APITOKEN_PEPPER_BYTES_MAX)
		return false;
	for (size_t i = 0; i < length; i += 2)
	{
		int			high = apitoken_hex_value(digits[i]);
		int			low = apitoken_hex_value(digits[i + 1]);

		if (high < 0 || low < 0)
			return false;
		pepper->key[i / 2] = (uint8) (high << 4 | low);
	}
	pepper->length = (uint8) (length / 2);
	return true;
}

/* Parse a line "n:hex", without its line feed. */
static bool
parse_pepper(const char *line, size_t length, ApitokenPepper *pepper)
{
	size_t		digits = 0;
	int			scheme = 0;

	/* Five digits cannot overflow an int.  Scheme 0 is the one without a pepper. */
	while (digits < length && digits < 5 && line[digits] >= '0' && line[digits] <= '9')
		scheme = scheme * 10 + (line[digits++] - '0');
	if (scheme < 1 || scheme > PG_INT16_MAX || digits == length || line[digits] != ':')
		return false;
	pepper->scheme = (int16) scheme;
	pepper->name[0] = '\0';
	return parse_key(line + digits + 1, length - digits - 1, PEPPER_BYTES_MIN, pepper);
}

/* Parse a line "name:hex", whose key may be of any length that the other system has. */
static bool
parse_named_key(const char *line, size_t length, ApitokenPepper *key)
{
	size_t		name = 0;

	while (name < length && ((line[name] >= 'a' && line[name] <= 'z') ||
							 (name > 0 && (line[name] == '-' || (line[name] >= '0' && line[name] <= '9')))))
		name++;
	if (name < 1 || name > APITOKEN_KEY_NAME_MAX || name == length || line[name] != ':')
		return false;
	memcpy(key->name, line, name);
	key->name[name] = '\0';
	key->scheme = 0;
	return parse_key(line + name + 1, length - name - 1, 1, key);
}

static const ApitokenPepper *
find_key(const PepperFile *file, const char *name)
{
	for (int i = file->room - file->key_count; i < file->room; i++)
	{
		if (strcmp(file->peppers[i].name, name) == 0)
			return &file->peppers[i];
	}
	return NULL;
}

static const ApitokenPepper *
find_pepper(const PepperFile *file, int16 scheme)
{
	for (int i = 0; i < file->count; i++)
	{
		if (file->peppers[i].scheme == scheme)
			return &file->peppers[i];
	}
	return NULL;
}

/* Parse the text of a pepper file into "file", which must have room for all its peppers. */
static bool
parse_peppers(const char *text, size_t length, PepperFile *file, PepperProblem *problem)
{
	const char *end = text + length;

	problem->line = 0;
	while (text < end)
	{
		const char *feed = memchr(text, '\n', end - text);
		const char *next = feed ? feed + 1 : end;
		size_t		line_length = (feed ? feed : end) - text;
		ApitokenPepper *pepper = &file->peppers[file->count];

		problem->line++;

		/* Ignore trailing blanks, including a carriage return, because editors do not show them. */
		while (line_length > 0 && is_blank(text[line_length - 1]))
			line_length--;

		if (line_length > 0 && text[0] >= 'a' && text[0] <= 'z')
		{
			ApitokenPepper *key = &file->peppers[file->room - file->key_count - 1];

			if (!parse_named_key(text, line_length, key))
			{
				problem->fault = FAULT_LINE;
				return false;
			}
			if (find_key(file, key->name) != NULL)
			{
				problem->fault = FAULT_DUPLICATE;
				return false;
			}
			file->key_count++;
		}
		else if (line_length > 0 && text[0] != '#')
		{
			if (!parse_pepper(text, line_length, pepper))
			{
				problem->fault = FAULT_LINE;
				return false;
			}
			/* This does not find the new pepper itself, which is not counted yet. */
			if (find_pepper(file, pepper->scheme) != NULL)
			{
				problem->fault = FAULT_DUPLICATE;
				return false;
			}
			if (file->highest == NULL || pepper->scheme > file->highest->scheme)
				file->highest = pepper;
			file->count++;
		}
		text = next;
	}

	if (file->count == 0)
	{
		problem->fault = FAULT_EMPTY;
		return false;
	}
	return true;
}

/*
 * Read from the file until the buffer is full or the file ends.  Returns the
 * number of bytes, or -1 with errno set.
 */
static ssize_t
read_all(int fd, char *buffer, size_t size)
{
	size_t		filled = 0;

	while (filled < size)
	{
		ssize_t		got = read(fd, buffer + filled, size - filled);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		if (got == 0)
			break;
		filled += got;
	}
	return (ssize_t) filled;
}

/*
 * Load the peppers from an open file.  The checks use the file descriptor, so
 * they apply to the file that is read even if the path now names another one.
 */
static PepperFile *
read_open_file(int fd, const char *path, PepperProblem *problem)
{
	struct stat before;
	struct stat after;
	PepperFile *file;
	char	   *text;
	size_t		size;
	int			room;
	ssize_t		length;
	bool		parsed = false;

	if (fstat(fd, &before) != 0)
	{
		problem->fault = FAULT_ACCESS;
		problem->error_number = errno;
		return NULL;
	}
	if (!check_file(&before, problem))
		return NULL;

	/*
	 * Allocate all memory before secrets are read, so that an out-of-memory error
	 * leaves none of them in memory.  The additional byte shows whether the file
	 * grew.
	 */
	room = before.st_size / PEPPER_LINE_MIN + 1;
	size = offsetof(PepperFile, peppers) + room * sizeof(ApitokenPepper);
	text = palloc(before.st_size + 1);
	file = MemoryContextAllocZero(TopMemoryContext, size + strlen(path) + 1);
	file->size = size + strlen(path) + 1;
	file->path = (char *) file + size;
	strcpy(file->path, path);
	file->room = room;
	file->identity = before;

	/*
	 * Refuse a file that changed while it was read.  If it is still being written,
	 * its text may end within a key and yet be well-formed.  A token created
	 * with such a truncated key could not be verified later.
	 */
	length = read_all(fd, text, before.st_size + 1);
	if (length < 0 || fstat(fd, &after) != 0)
	{
		problem->fault = FAULT_ACCESS;
		problem->error_number = errno;
	}
	else if (length != before.st_size || !same_file(&before, &after))
		problem->fault = FAULT_CHANGED;
	else
		parsed = parse_peppers(text, length, file, problem);

	explicit_bzero(text, before.st_size + 1);
	pfree(text);
	if (!parsed)
	{
		wipe_peppers(file);
		return NULL;
	}
	return file;
}

/*
 * Returns the current peppers, reading the file if it changed.  If there is a
 * problem with the file, this returns NULL and sets "problem".  It then also
 * discards the peppers loaded before, so that no session continues to use a file
 * that was removed.
 */
static const PepperFile *
load_peppers(PepperProblem *problem)
{
	struct stat now;
	bool		found;
	int			fd;

	found = stat(apitoken_pepper_file, &now) == 0;
	if (!found)
	{
		problem->fault = FAULT_ACCESS;
		problem->error_number = errno;
	}
	else if (loaded != NULL && strcmp(loaded->path, apitoken_pepper_file) == 0 &&
			 same_file(&loaded->identity, &now))
		return loaded;

	if (loaded != NULL)
	{
		PepperFile *old = loaded;

		loaded = NULL;
		wipe_peppers(old);
	}
	if (!found)
		return NULL;

	/* Without O_NONBLOCK, opening a pipe would wait for a writer. */
	fd = OpenTransientFile(apitoken_pepper_file, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
	{
		problem->fault = FAULT_ACCESS;
		problem->error_number = errno;
		return NULL;
	}
	loaded = read_open_file(fd, apitoken_pepper_file, problem);
	CloseTransientFile(fd);
	return loaded;
}

/*
 * Add the path of the pepper file to an error, for the server log only: callers
 * may be anybody, and must not learn where secrets are.
 */
static int
log_path(void)
{
	return errdetail_log("The pepper file is \"%s\".", apitoken_pepper_file);
}

/* Raise an error about the pepper file.  The message never shows its content. */
static void
report_problem(const PepperProblem *problem)
{
	switch (problem->fault)
	{
		case FAULT_ACCESS:
			errno = problem->error_number;
			ereport_server(
					(errcode_for_file_access(),
					 errmsg("could not read pepper file"),
					 errdetail_log("Could not read file \"%s\": %m", apitoken_pepper_file),
					 errhint("Set \"apitoken.pepper_file\" to a file that the server can read.")));
			break;
		case FAULT_NOT_REGULAR:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("pepper file is not a regular file"),
					 log_path(),
					 errhint("Set \"apitoken.pepper_file\" to a regular file, not to a directory, device or pipe.")));
			break;
		case FAULT_OWNER:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("pepper file is owned by another user"),
					 log_path(),
					 errhint("Change the owner of the file to the server's user or root.")));
			break;
		case FAULT_MODE:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("pepper file has group or world access"),
					 log_path(),
					 errhint("Set its permissions to u=rw (0600) if the server's user owns it, "
							 "or to u=rw,g=r (0640) if root does.")));
			break;
		case FAULT_TOO_LARGE:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("pepper file is too large"),
					 log_path(),
					 errhint("Use a pepper file of at most %d bytes.", PEPPER_FILE_MAX)));
			break;
		case FAULT_CHANGED:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("pepper file changed while it was read"),
					 log_path(),
					 errhint("Try again.  To change the file, write a new one and rename it over the old one.")));
			break;
		case FAULT_LINE:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("invalid line %d in pepper file", problem->line),
					 log_path(),
					 errhint("Use the form \"n:key\", with a number from 1 to %d and a key of %d to %d bytes in hexadecimal, or \"name:key\" for a key of another system.",
							 PG_INT16_MAX, PEPPER_BYTES_MIN, APITOKEN_PEPPER_BYTES_MAX)));
			break;
		case FAULT_DUPLICATE:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("line %d of pepper file repeats the number or name of an earlier line",
							problem->line),
					 log_path(),
					 errhint("Use a different number for each pepper, and a different name for each key of another system.  The pepper with the highest number signs new tokens.")));
			break;
		case FAULT_EMPTY:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("pepper file contains no pepper"),
					 log_path(),
					 errhint("Add a line \"1:key\" with %d to %d random bytes in hexadecimal, "
							 "for example from \"openssl rand -hex 32\", or leave \"apitoken.pepper_file\" empty.",
							 PEPPER_BYTES_MIN, APITOKEN_PEPPER_BYTES_MAX)));
			break;
	}
}

/* Returns the current peppers, or raises an error. */
static const PepperFile *
get_peppers(void)
{
	PepperProblem problem;
	const PepperFile *file = load_peppers(&problem);

	if (file == NULL)
		report_problem(&problem);
	return file;
}

/*
 * Returns the pepper for new digests, or NULL if no file is set.  Raises an error
 * if the file is set but unusable, or if a pepper is required and no file is set.
 */
const ApitokenPepper *
apitoken_signing_pepper(void)
{
	if (!pepper_file_is_set())
	{
		apitoken_require_setting(&apitoken_pepper_file);
		if (apitoken_required(&apitoken_require_pepper))
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("\"apitoken.require_pepper\" is on, but no pepper file is set"),
					 errhint("Set \"apitoken.pepper_file\" to a file with a pepper, or set \"apitoken.require_pepper\" to off.")));
		return NULL;
	}
	return get_peppers()->highest;
}

/* Returns the pepper of a scheme, or raises an error if there is none. */
const ApitokenPepper *
apitoken_pepper(int16 scheme)
{
	const ApitokenPepper *pepper;

	if (!pepper_file_is_set())
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("token digest requires pepper %d, but no pepper file is set", scheme),
				 errhint("Set \"apitoken.pepper_file\" to the file that contains this pepper.")));

	pepper = find_pepper(get_peppers(), scheme);
	if (pepper == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("token digest requires pepper %d, which the pepper file does not contain", scheme),
				 log_path(),
				 errhint("Restore the line \"%d:key\".  Tokens signed with a pepper need it as long as they are used.",
						 scheme)));
	return pepper;
}

/* Returns all peppers, *count of them; none if the file is not set or unusable. */
const ApitokenPepper *
apitoken_usable_peppers(int *count)
{
	PepperProblem problem;
	const PepperFile *file = pepper_file_is_set() ? load_peppers(&problem) : NULL;

	*count = file == NULL ? 0 : file->count;
	return file == NULL ? NULL : file->peppers;
}

/*
 * Returns the numbers of all peppers, or NIL if no file is set.  Raises the same
 * errors as apitoken_signing_pepper().
 */
List *
apitoken_pepper_schemes(void)
{
	List	   *schemes = NIL;

	if (apitoken_signing_pepper() == NULL)
		return NIL;
	for (int i = 0; i < loaded->count; i++)
		schemes = lappend_int(schemes, loaded->peppers[i].scheme);
	return schemes;
}

/*
 * Returns the key of another system, or raises an error if there is none: no token
 * that was imported from there could be verified.
 */
const ApitokenPepper *
apitoken_key(const char *name)
{
	const ApitokenPepper *key = pepper_file_is_set() ? find_key(get_peppers(), name) : NULL;

	if (key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("imported tokens require the key \"%s\", which the pepper file does not contain", name),
				 log_path(),
				 errhint("Add the line \"%s:key\" to the file that \"apitoken.pepper_file\" names, with the other system's key in hexadecimal.", name)));
	return key;
}
