//go:build dpdk

#pragma once
#include <stddef.h>
#include <stdint.h>

// The layouts of bgp.Route.
struct route4 {
	uint32_t addr;
	uint16_t value; // 0 in a change: withdrawn
	uint8_t bits, pad;
};
struct route6 {
	uint8_t addr[16];
	uint16_t value;
	uint8_t bits, pad;
};

enum kind { FIB, LPM_X4, LPM_BULK, FIB6, LPM6 };

enum { BATCH = 256 };

struct peer;

// eal_start starts DPDK in this process with mb MiB of memory, without devices. The calling thread stays on its CPUs.
int eal_start(int cpu, int mb);

// peer_new makes an empty table with room for n routes; NULL and rte_errno where that does not work.
struct peer *peer_new(enum kind k, unsigned n);
void peer_free(struct peer *p);
int peer_errno(void);
int peer_avx512(const struct peer *p);
size_t peer_bytes(const struct peer *p); // allocated from DPDK's heap

// Routes are route4 or route6, destinations uint32_t in host order or 16 bytes, as the kind has it. n counts
// them, and is a multiple of BATCH for destinations.
int peer_load(struct peer *p, const void *routes, size_t n);
int peer_update(struct peer *p, const void *routes, size_t n);
void peer_find(struct peer *p, const void *dst, uint16_t *out, size_t n);
void peer_pass(struct peer *p, const void *dst, size_t n);
// peer_polluted touches packets before each batch, in len words from word at on (see fibRing in package bench), and returns
// where it stopped.
size_t peer_polluted(struct peer *p, const void *dst, uint64_t *words, size_t len, size_t at, uint64_t *ticks, size_t n);
size_t peer_poll(struct peer *p, const void *dst, size_t n, const uint32_t *stop);

// peer_add adds the routes of an rte_lpm one by one, by its own function.
int peer_add(struct peer *p, const void *routes, size_t n);
