/*
 * The least that a process between smtpd and a filter can do: copy bytes in both directions.
 *
 * It starts the filter that its arguments name on a socket of its own, as filter-supervise does.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECE = 60 << 10 };		/* as the supervisor reads */

static char buffer[PIECE];

static void
put(int fd, const char *from, ssize_t size)
{
	while (size > 0) {
		ssize_t done = write(fd, from, size);

		if (done < 0) {
			struct pollfd room = { .fd = fd, .events = POLLOUT };

			if (errno != EAGAIN)
				exit(1);
			poll(&room, 1, -1);
			continue;
		}
		from += done;
		size -= done;
	}
}

int
main(int argc, char **argv)
{
	int ends[2], status = 1;
	pid_t filter;

	if (argc < 2 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
		return 1;
	filter = fork();
	if (filter == 0) {
		dup2(ends[1], 0);
		dup2(ends[1], 1);
		close(ends[0]);
		close(ends[1]);
		execvp(argv[1], argv + 1);
		_exit(127);
	}
	close(ends[1]);
	struct pollfd both[2] = {
		{ .fd = 0, .events = POLLIN },
		{ .fd = ends[0], .events = POLLIN },
	};
	for (;;) {
		ssize_t size;

		poll(both, 2, -1);
		if (both[0].revents) {
			size = read(0, buffer, sizeof buffer);
			if (size > 0)
				put(ends[0], buffer, size);
			else if (size == 0) {
				shutdown(ends[0], SHUT_WR);
				both[0].fd = -1;
			}
		}
		if (both[1].revents) {
			size = read(ends[0], buffer, sizeof buffer);
			if (size <= 0)
				break;
			put(1, buffer, size);
		}
	}
	waitpid(filter, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
