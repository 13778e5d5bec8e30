/*
 * The floor in C: blocking sockets that carry the bytes of puts and gets, and store nothing.
 *
 *     floor NODES COPIES PUT_SIZE GET_SIZE GET_SIZE_MAX ACK_SIZE ENTRY_SIZE
 *
 * The sizes of the requests are those without the key. It starts NODES servers, a process each, and is
 * their client. It prints their process numbers in one line, and then obeys lines on standard input:
 *
 *     run N     N puts, a get after each, of key0, key1, ...; then prints an empty line
 *     time N    the same; then prints no line, but 2N numbers of 32 bits: the nanoseconds of each put
 *               and get in turn
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_SIZE = 65536, NODES_MAX = 64 };

static char buffer[BUFFER_SIZE], request[BUFFER_SIZE];
static int peers[NODES_MAX];
static int nodes, copies, put_size, get_size, get_size_max, ack_size, entry_size;

static void check(long result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static void no_delay(int peer)
{
    int on = 1;
    check(setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "setsockopt");
}

static void serve(int listener)
{
    int peer = accept(listener, NULL, NULL);
    ssize_t size;

    check(peer, "accept");
    no_delay(peer);
    while ((size = recv(peer, buffer, BUFFER_SIZE, 0)) > 0)
        check(send(peer, request, size > get_size_max ? ack_size : entry_size, 0), "send");
    exit(0);
}

static int start_server(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), peer = socket(AF_INET, SOCK_STREAM, 0);
    pid_t pid;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(bind(listener, (struct sockaddr *)&address, sizeof address), "bind");
    check(listen(listener, 1), "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &size), "getsockname");
    check(pid = fork(), "fork");
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(listener);
    }
    check(connect(peer, (struct sockaddr *)&address, sizeof address), "connect");
    no_delay(peer);
    close(listener);
    peers[nodes++] = peer;
    return pid;
}

static uint32_t since(const struct timespec *start)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - start->tv_sec) * 1000000000 + now.tv_nsec - start->tv_nsec;
}

/* A put and a get. */
static void pair(long i, uint32_t *times)
{
    struct timespec start;
    char key[32];
    int j, sum = 0, size = snprintf(key, sizeof key, "key%ld", i);

    if (times)
        clock_gettime(CLOCK_MONOTONIC, &start);
    for (j = 0; j < size; j++)
        sum += key[j];
    for (j = 0; j < copies; j++)
        check(send(peers[(sum + j) % nodes], request, put_size + size, 0), "send");
    for (j = 0; j < copies; j++)
        check(recv(peers[(sum + j) % nodes], buffer, BUFFER_SIZE, 0), "recv");
    if (times) {
        times[0] = since(&start);
        clock_gettime(CLOCK_MONOTONIC, &start);
    }
    check(send(peers[sum % nodes], request, get_size + size, 0), "send");
    check(recv(peers[sum % nodes], buffer, BUFFER_SIZE, 0), "recv");
    if (times)
        times[1] = since(&start);
}

int main(int count, char **arguments)
{
    char line[64];
    int wanted;

    if (count != 8)
        return 2;
    wanted = atoi(arguments[1]);
    copies = atoi(arguments[2]);
    put_size = atoi(arguments[3]);
    get_size = atoi(arguments[4]);
    get_size_max = atoi(arguments[5]);
    ack_size = atoi(arguments[6]);
    entry_size = atoi(arguments[7]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGCHLD, SIG_IGN);
    while (nodes < wanted)
        printf("%d ", start_server());
    printf("\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        int is_timed = line[0] == 't';
        long i, pairs = atol(strchr(line, ' '));
        uint32_t *times = is_timed ? malloc(2 * pairs * sizeof *times) : NULL;

        for (i = 0; i < pairs; i++)
            pair(i, is_timed ? times + 2 * i : NULL);
        if (is_timed)
            fwrite(times, sizeof *times, 2 * pairs, stdout);
        else
            printf("\n");
        fflush(stdout);
        free(times);
    }
    return 0;
}
