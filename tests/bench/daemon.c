/*
 * Stands in for Rspamd in the benchmark: the least that a daemon can do.
 *
 * It listens on a free port of 127.0.0.1 and writes its number to stdout. Whatever is asked, it
 * reads to its end (of a known length, or in chunks) and answers with the file named by its
 * argument. Connections are kept alive unless their request says otherwise. When its input ends it
 * writes how many requests it has answered and on how many connections, and ends too.
 */
#define _GNU_SOURCE		/* accept4 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD = 1 << 16, PIECE = 1 << 18, EVENTS = 256 };

enum state { HEADERS, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
	enum state state;
	size_t left;		/* octets of the body, or of the chunk */
	int last;		/* the request wants to be the last one */
	size_t held;
	char head[HEAD];	/* a header block or a line that is not whole yet */
};

static char reply[PIECE], piece[PIECE];
static size_t reply_size;
static unsigned long requests, connections;

/* The value of a header field, NULL if it isn't there. */
static const char *
field(const char *head, const char *name)
{
	size_t size = strlen(name);

	while ((head = strstr(head, "\r\n")) != NULL) {
		head += 2;
		if (strncasecmp(head, name, size) == 0 && head[size] == ':')
			return head + size + 1 + strspn(head + size + 1, " \t");
	}
	return NULL;
}

/* A whole header block is in c->head. */
static void
begin(struct connection *c)
{
	const char *value;

	c->last = (value = field(c->head, "Connection")) && strncasecmp(value, "close", 5) == 0;
	if ((value = field(c->head, "Transfer-Encoding")) && strncasecmp(value, "chunked", 7) == 0)
		c->state = CHUNK_SIZE;
	else {
		c->state = BODY;
		c->left = (value = field(c->head, "Content-Length")) ? strtoul(value, NULL, 10) : 0;
	}
}

/* Takes octets up to the end of what c->head is to hold; returns how many, and whether it is whole. */
static size_t
gather(struct connection *c, const char *data, size_t size, const char *end, int *whole)
{
	size_t taken, length = strlen(end);

	*whole = 0;
	for (taken = 0; taken < size && !*whole; taken++) {
		if (c->held == HEAD - 1)
			errx(1, "a line or header block of more than %d octets", HEAD);
		c->head[c->held++] = data[taken];
		*whole = data[taken] == '\n' && c->held >= length &&
		    memcmp(c->head + c->held - length, end, length) == 0;
	}
	if (*whole) {
		c->head[c->held] = '\0';
		c->held = 0;
	}
	return taken;
}

/* Returns -1 when the connection is done with. */
static int
answer(int fd, struct connection *c)
{
	size_t sent = 0;

	while (sent < reply_size) {
		ssize_t more = write(fd, reply + sent, reply_size - sent);

		if (more < 0 && errno != EAGAIN)
			return -1;
		if (more > 0)
			sent += more;
	}
	requests++;
	c->state = HEADERS;
	return c->last ? -1 : 0;
}

static int
take(int fd, struct connection *c, const char *data, size_t size)
{
	while (size > 0) {
		size_t used = 0;
		int whole;

		switch (c->state) {
		case HEADERS:
			used = gather(c, data, size, "\r\n\r\n", &whole);
			if (whole)
				begin(c);
			break;
		case CHUNK_SIZE:
			used = gather(c, data, size, "\n", &whole);
			if (whole) {
				c->left = strtoul(c->head, NULL, 16);
				c->state = c->left ? CHUNK : TRAILER;
			}
			break;
		case BODY:
		case CHUNK:
			used = size < c->left ? size : c->left;
			c->left -= used;
			if (c->state == CHUNK && c->left == 0)
				c->state = CHUNK_END;
			break;
		case CHUNK_END:
			used = gather(c, data, size, "\n", &whole);
			if (whole)
				c->state = CHUNK_SIZE;
			break;
		case TRAILER:
			used = gather(c, data, size, "\n", &whole);
			if (whole && strcmp(c->head, "\r\n") == 0) {
				c->state = BODY;
				c->left = 0;
			}
			break;
		}
		data += used;
		size -= used;
		if (c->state == BODY && c->left == 0 && answer(fd, c) < 0)
			return -1;
	}
	return 0;
}

static void
load(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat about;
	size_t head;

	if (fd < 0 || fstat(fd, &about) < 0)
		err(1, "%s", path);
	head = snprintf(reply, sizeof reply,
	    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %ld\r\n\r\n",
	    (long)about.st_size);
	if (head + about.st_size > sizeof reply)
		errx(1, "%s is too long", path);
	if (read(fd, reply + head, about.st_size) != about.st_size)
		err(1, "%s", path);
	reply_size = head + about.st_size;
	close(fd);
}

static int
listening(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 1024) < 0 ||
	    getsockname(fd, (struct sockaddr *)&address, &size) < 0)
		err(1, "listening");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

static void
watch(int epoll, int fd, void *who)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = who };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		err(1, "epoll_ctl");
}

int
main(int count, char **arguments)
{
	static struct connection *known[1 << 16];
	static int listener, input = STDIN_FILENO;
	int epoll = epoll_create1(0);

	if (count != 2)
		errx(2, "usage: daemon FILE");
	load(arguments[1]);
	listener = listening();
	watch(epoll, listener, &listener);
	watch(epoll, STDIN_FILENO, &input);
	for (;;) {
		struct epoll_event events[EVENTS];
		int at, ready = epoll_wait(epoll, events, EVENTS, -1);

		for (at = 0; at < ready; at++) {
			struct connection **who = events[at].data.ptr;
			int fd, on = 1;
			ssize_t got;

			if ((void *)who == &input) {
				if (read(input, piece, sizeof piece) > 0)
					continue;
				printf("%lu %lu\n", requests, connections);
				return 0;
			}
			if ((void *)who == &listener) {
				fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
				if (fd < 0)
					continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
				if ((known[fd] = calloc(1, sizeof **known)) == NULL)
					err(1, "memory");
				connections++;
				watch(epoll, fd, &known[fd]);
				continue;
			}
			fd = who - known;
			got = read(fd, piece, sizeof piece);
			if (got < 0 && errno == EAGAIN)
				continue;
			if (got <= 0 || take(fd, *who, piece, got) < 0) {
				close(fd);
				free(*who);
				*who = NULL;
			}
		}
	}
}
