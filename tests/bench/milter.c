/*
 * Stands in for milters in the benchmark: the least that a milter can do.
 *
 * It listens on a free port of 127.0.0.1 and writes its number to stdout. Its argument is the
 * protocol bits that it wants, in hexadecimal. It accepts each message. When its input ends it
 * ends too.
 */
#define _GNU_SOURCE		/* accept4 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PACKET = 1 << 17, EVENTS = 256 };

struct connection {
	size_t held;
	char data[PACKET];
};

static uint32_t wanted;

/* The bit that takes the reply to an event away. */
static uint32_t
unanswered(char command)
{
	switch (command) {
	case 'C': return 0x1000;
	case 'H': return 0x2000;
	case 'M': return 0x4000;
	case 'R': return 0x8000;
	case 'T': return 0x10000;
	case 'L': return 0x80;
	case 'N': return 0x40000;
	case 'B': return 0x80000;
	default: return 0;
	}
}

/* Append the answer to a packet; return its size, or -1 to close the connection. */
static int
answer(char command, char *out)
{
	uint32_t word[4];

	switch (command) {
	case 'O':
		word[0] = htonl(13), word[1] = htonl(6), word[2] = htonl(0x1), word[3] = htonl(wanted);
		memcpy(out, word, 4);
		out[4] = 'O';
		memcpy(out + 5, word + 1, 12);
		return 17;
	case 'D':
	case 'A':
		return 0;
	case 'Q':
		return -1;
	case 'E':
		memcpy(out, "\0\0\0\1a", 5);
		return 5;
	default:
		if (wanted & unanswered(command))
			return 0;
		memcpy(out, "\0\0\0\1c", 5);
		return 5;
	}
}

/* Answer all whole packets; return -1 to close the connection. */
static int
serve(int fd, struct connection *c)
{
	char out[EVENTS * 20];
	size_t at = 0;
	int size = 0, one;
	uint32_t length;
	ssize_t got;

	got = read(fd, c->data + c->held, sizeof c->data - c->held);
	if (got <= 0)
		return got < 0 && errno == EAGAIN ? 0 : -1;
	c->held += (size_t)got;
	while (c->held - at > 4) {
		memcpy(&length, c->data + at, 4);
		length = ntohl(length);
		if (length == 0 || length > PACKET - 4)
			return -1;
		if (c->held - at < 4 + (size_t)length)
			break;
		one = answer(c->data[at + 4], out + size);
		if (one < 0)
			return -1;
		size += one;
		at += 4 + length;
		if (size > (int)sizeof out - 20) {
			if (write(fd, out, (size_t)size) != size)
				return -1;
			size = 0;
		}
	}
	memmove(c->data, c->data + at, c->held - at);
	c->held -= at;
	return size && write(fd, out, (size_t)size) != size ? -1 : 0;
}

static void
watch(int poll, int fd, void *data)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = data };

	if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) < 0)
		err(1, "epoll_ctl");
}

int
main(int argc, char **argv)
{
	static struct { int fd; struct connection c; } *each;
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof address;
	struct epoll_event events[EVENTS];
	int listener, poll, count, fd, one = 1;
	static char ends, comes;

	if (argc != 2)
		errx(2, "usage: milter BITS");
	wanted = (uint32_t)strtoul(argv[1], NULL, 16);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 ||
	    listen(listener, 1024) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &size) < 0)
		err(1, "socket");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	if ((poll = epoll_create1(0)) < 0)
		err(1, "epoll_create1");
	watch(poll, listener, &comes);
	watch(poll, STDIN_FILENO, &ends);
	for (;;) {
		if ((count = epoll_wait(poll, events, EVENTS, -1)) < 0 && errno != EINTR)
			err(1, "epoll_wait");
		while (count-- > 0) {
			if (events[count].data.ptr == &ends)
				return 0;
			if (events[count].data.ptr == &comes) {
				fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				if (fd < 0)
					continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				if ((each = malloc(sizeof *each)) == NULL)
					err(1, "malloc");
				each->fd = fd;
				each->c.held = 0;
				watch(poll, fd, each);
				continue;
			}
			each = events[count].data.ptr;
			if (serve(each->fd, &each->c) < 0) {
				close(each->fd);
				free(each);
			}
		}
	}
}
