//go:build dpdk

#define _GNU_SOURCE
#include "peer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_fib.h>
#include <rte_fib6.h>
#include <rte_lpm.h>
#include <rte_lpm6.h>
#include <rte_malloc.h>
#include <rte_memory.h>

// Without huge pages of the kernel's pool DPDK maps a memfd in pages of 4 KiB, while Millrace has transparent huge
// ones. large_pages puts anonymous memory, which can have them, in place of it, with what it holds at the start.
static int large_pages(const struct rte_memseg_list *l, void *arg)
{
	const size_t page = 4096, n = l->len / page;
	unsigned char *in = malloc(n);
	char *base = l->base_va, *kept = NULL;
	size_t used = 0, k = 0;

	(void)arg;
	if (l->page_sz != page || in == NULL || mincore(base, l->len, in))
		goto out;
	for (size_t i = 0; i < n; i++)
		used += in[i] & 1;
	kept = malloc(used * page + 1);
	if (kept == NULL)
		goto out;
	for (size_t i = 0; i < n; i++)
		if (in[i] & 1)
			memcpy(kept + page * k++, base + page * i, page);
	if (mmap(base, l->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		abort(); // the memory is gone
	madvise(base, l->len, MADV_HUGEPAGE);
	k = 0;
	for (size_t i = 0; i < n; i++)
		if (in[i] & 1)
			memcpy(base + page * i, kept + page * k++, page);
out:
	free(in);
	free(kept);
	return 0;
}

int eal_start(int cpu, int mb)
{
	char core[16], mem[16];
	char *argv[] = {"millrace", "-l", core, "-m", mem, "--no-huge", "--no-shconf", "--no-pci", "--no-telemetry",
		"--force-max-simd-bitwidth=512", "--log-level=3"};
	cpu_set_t set;
	int err;

	snprintf(core, sizeof(core), "%d", cpu);
	snprintf(mem, sizeof(mem), "%d", mb);
	pthread_getaffinity_np(pthread_self(), sizeof(set), &set);
	err = rte_eal_init(sizeof(argv) / sizeof(*argv), argv);
	pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
	if (err < 0)
		return -rte_errno;
	rte_memseg_list_walk(large_pages, NULL);
	return 0;
}

int peer_errno(void) { return rte_errno; }

struct ring;

// ops is what a kind of table does; the loops over destinations are made for each kind by LOOPS, so that the lookup is inlined
// where DPDK has it inline.
struct ops {
	void *(*make)(struct peer *p, const char *name, unsigned n);
	void (*free)(void *t);
	int (*load)(void *t, const void *routes, size_t n);
	int (*update)(void *t, const void *routes, size_t n);
	void (*find)(void *t, const void *dst, uint16_t *out, size_t n);
	void (*pass)(void *t, const void *dst, size_t n);
	void (*polluted)(void *t, const void *dst, struct ring *r, uint64_t *ticks, size_t n);
	size_t (*poll)(void *t, const void *dst, size_t n, const uint32_t *stop);
};

struct peer {
	const struct ops *ops;
	void *t;
	size_t bytes;
	int avx512;
};

// Memory that stands for packets between two batches.
struct ring {
	uint64_t *words;
	size_t len, at; // of words
};

static void touch(struct ring *r)
{
	uint64_t s = 0;

	for (int i = 0; i < BATCH; i++) {
		uint64_t *p = r->words + r->at;
		for (int l = 0; l < 32; l += 8) {
			s += p[l];
			p[l] = s;
		}
		r->at += 2048 / 8;
		if (r->at == r->len)
			r->at = 0;
	}
}

#define LOOPS(name, A, R)                                                                                              \
	static void name##_find(void *t, const void *dst, uint16_t *out, size_t n)                                     \
	{                                                                                                              \
		const A *d = dst;                                                                                      \
		R got[BATCH];                                                                                          \
		for (size_t i = 0; i < n; i += BATCH) {                                                                \
			name##_batch(t, d + i, got);                                                                   \
			for (int j = 0; j < BATCH; j++)                                                                \
				out[i + j] = name##_value(got[j]);                                                     \
		}                                                                                                      \
	}                                                                                                              \
	static void name##_pass(void *t, const void *dst, size_t n)                                                    \
	{                                                                                                              \
		const A *d = dst;                                                                                      \
		static R got[BATCH];                                                                                   \
		for (size_t i = 0; i < n; i += BATCH)                                                                  \
			name##_batch(t, d + i, got);                                                                   \
	}                                                                                                              \
	static void name##_polluted(void *t, const void *dst, struct ring *r, uint64_t *ticks, size_t n)               \
	{                                                                                                              \
		const A *d = dst;                                                                                      \
		static R got[BATCH];                                                                                   \
		for (size_t i = 0; i < n; i += BATCH) {                                                                \
			touch(r);                                                                                      \
			uint64_t begin = __rdtsc();                                                                    \
			name##_batch(t, d + i, got);                                                                   \
			ticks[i / BATCH] = __rdtsc() - begin;                                                          \
		}                                                                                                      \
	}                                                                                                              \
	static size_t name##_poll(void *t, const void *dst, size_t n, const uint32_t *stop)                            \
	{                                                                                                              \
		const A *d = dst;                                                                                      \
		R got[BATCH];                                                                                          \
		size_t i = 0, all = 0;                                                                                 \
		while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {                                                     \
			name##_batch(t, d + i, got);                                                                   \
			all += BATCH;                                                                                  \
			i += BATCH;                                                                                    \
			if (i == n)                                                                                    \
				i = 0;                                                                                 \
		}                                                                                                      \
		return all;                                                                                            \
	}

#define TABLE(name) name##_find, name##_pass, name##_polluted, name##_poll

// rte_fib: DIR-24-8 with entries of two bytes.

static void *fib_make(struct peer *p, const char *name, unsigned n)
{
	struct rte_fib_conf c = {.type = RTE_FIB_DIR24_8, .max_routes = n};
	struct rte_fib *f;

	c.dir24_8.nh_sz = RTE_FIB_DIR24_8_2B;
	c.dir24_8.num_tbl8 = (1 << 15) - 1;
	f = rte_fib_create(name, SOCKET_ID_ANY, &c);
	// Only once: it executes CPUID, which a hypervisor answers in 10 us.
	if (f != NULL)
		p->avx512 = rte_fib_select_lookup(f, RTE_FIB_LOOKUP_DIR24_8_VECTOR_AVX512) == 0;
	return f;
}

static void fib_free(void *t) { rte_fib_free(t); }

static int fib_update(void *t, const void *routes, size_t n)
{
	const struct route4 *r = routes;
	int err = 0;

	for (size_t i = 0; i < n && !err; i++) {
		if (r[i].value)
			err = rte_fib_add(t, r[i].addr, r[i].bits, r[i].value);
		else
			rte_fib_delete(t, r[i].addr, r[i].bits); // or it was not there
	}
	return err;
}

static inline void fib_batch(void *t, const uint32_t *dst, uint64_t *got)
{
	rte_fib_lookup_bulk(t, (uint32_t *)(uintptr_t)dst, got, BATCH);
}
static inline uint16_t fib_value(uint64_t got) { return got; }
LOOPS(fib, uint32_t, uint64_t)

// rte_lpm

enum { LPM_TBL8 = 1 << 15 };

static void *lpm_make(struct peer *p, const char *name, unsigned n)
{
	struct rte_lpm_config c = {.max_rules = n, .number_tbl8s = LPM_TBL8};

	(void)p;
	return rte_lpm_create(name, SOCKET_ID_ANY, &c);
}

static void lpm_free(void *t) { rte_lpm_free(t); }

// lpm_load fills the tables that lookups read, as rte_lpm_add leaves them, but for the numbers of its groups:
// rte_lpm_add searches all rules of a length, so that a full table takes minutes.
static int lpm_load(void *t, const void *routes, size_t n)
{
	struct rte_lpm *lpm = t;
	const struct route4 *r = routes;
	uint32_t groups = 0;

	for (int bits = 1; bits <= 32; bits++)
		for (size_t i = 0; i < n; i++) {
			if (r[i].bits != bits)
				continue;
			struct rte_lpm_tbl_entry e = {.next_hop = r[i].value, .valid = 1, .depth = bits};
			struct rte_lpm_tbl_entry *at = lpm->tbl24 + (r[i].addr >> 8);
			if (bits <= 24) {
				for (uint32_t k = 0; k < 1u << (24 - bits); k++)
					at[k] = e;
				continue;
			}
			if (!at->valid_group) {
				if (groups == LPM_TBL8)
					return -ENOSPC;
				struct rte_lpm_tbl_entry in = *at;
				in.valid_group = 1; // in tbl8: the group is in use
				for (int k = 0; k < 256; k++)
					lpm->tbl8[groups * 256 + k] = in;
				*at = (struct rte_lpm_tbl_entry){.next_hop = groups++, .valid = 1, .valid_group = 1};
			}
			e.valid_group = 1;
			for (uint32_t k = 0; k < 1u << (32 - bits); k++)
				lpm->tbl8[at->next_hop * 256 + (r[i].addr & 255) + k] = e;
		}
	return 0;
}

static int lpm_add(void *t, const void *routes, size_t n)
{
	const struct route4 *r = routes;
	int err = 0;

	for (size_t i = 0; i < n && !err; i++)
		err = rte_lpm_add(t, r[i].addr, r[i].bits, r[i].value);
	return err;
}

static inline void lpm_x4_batch(void *t, const uint32_t *dst, uint32_t *got)
{
	for (int i = 0; i < BATCH; i += 4)
		rte_lpm_lookupx4(t, _mm_loadu_si128((const __m128i *)(dst + i)), got + i, 0);
}
static inline uint16_t lpm_x4_value(uint32_t got) { return got; }
LOOPS(lpm_x4, uint32_t, uint32_t)

static inline void lpm_bulk_batch(void *t, const uint32_t *dst, uint32_t *got) { rte_lpm_lookup_bulk(t, dst, got, BATCH); }
static inline uint16_t lpm_bulk_value(uint32_t got) { return got & RTE_LPM_LOOKUP_SUCCESS ? got : 0; }
LOOPS(lpm_bulk, uint32_t, uint32_t)

// rte_fib6: a trie. Entries of two bytes have room for 2^15 groups, fewer than a full table needs.

static void *fib6_make(struct peer *p, const char *name, unsigned n)
{
	struct rte_fib6_conf c = {.type = RTE_FIB6_TRIE, .max_routes = n};
	struct rte_fib6 *f;

	c.trie.nh_sz = n < 20000 ? RTE_FIB6_TRIE_2B : RTE_FIB6_TRIE_4B;
	c.trie.num_tbl8 = n < 20000 ? (1 << 15) - 1 : 1 << 19;
	f = rte_fib6_create(name, SOCKET_ID_ANY, &c);
	if (f != NULL)
		p->avx512 = rte_fib6_select_lookup(f, RTE_FIB6_LOOKUP_TRIE_VECTOR_AVX512) == 0;
	return f;
}

static void fib6_free(void *t) { rte_fib6_free(t); }

static int fib6_update(void *t, const void *routes, size_t n)
{
	const struct route6 *r = routes;
	int err = 0;

	for (size_t i = 0; i < n && !err; i++) {
		if (r[i].value)
			err = rte_fib6_add(t, r[i].addr, r[i].bits, r[i].value);
		else
			rte_fib6_delete(t, r[i].addr, r[i].bits);
	}
	return err;
}

typedef uint8_t addr6[16];

static inline void fib6_batch(void *t, const addr6 *dst, uint64_t *got)
{
	rte_fib6_lookup_bulk(t, (addr6 *)(uintptr_t)dst, got, BATCH);
}
static inline uint16_t fib6_value(uint64_t got) { return got; }
LOOPS(fib6, addr6, uint64_t)

// rte_lpm6

static void *lpm6_make(struct peer *p, const char *name, unsigned n)
{
	struct rte_lpm6_config c = {.max_rules = n, .number_tbl8s = 1 << 19};

	(void)p;
	return rte_lpm6_create(name, SOCKET_ID_ANY, &c);
}

static void lpm6_free(void *t) { rte_lpm6_free(t); }

static int lpm6_load(void *t, const void *routes, size_t n)
{
	const struct route6 *r = routes;
	int err = 0;

	for (size_t i = 0; i < n && !err; i++)
		err = rte_lpm6_add(t, r[i].addr, r[i].bits, r[i].value);
	return err;
}

static inline void lpm6_batch(void *t, const addr6 *dst, int32_t *got)
{
	rte_lpm6_lookup_bulk_func(t, (addr6 *)(uintptr_t)dst, got, BATCH);
}
static inline uint16_t lpm6_value(int32_t got) { return got < 0 ? 0 : got; }
LOOPS(lpm6, addr6, int32_t)

static const struct ops kinds[] = {
	[FIB] = {fib_make, fib_free, fib_update, fib_update, TABLE(fib)},
	[LPM_X4] = {lpm_make, lpm_free, lpm_load, NULL, TABLE(lpm_x4)},
	[LPM_BULK] = {lpm_make, lpm_free, lpm_load, NULL, TABLE(lpm_bulk)},
	[FIB6] = {fib6_make, fib6_free, fib6_update, fib6_update, TABLE(fib6)},
	[LPM6] = {lpm6_make, lpm6_free, lpm6_load, NULL, TABLE(lpm6)},
};

static size_t allocated(void)
{
	struct rte_malloc_socket_stats s;

	return rte_malloc_get_socket_stats(0, &s) ? 0 : s.heap_allocsz_bytes;
}

struct peer *peer_new(enum kind k, unsigned n)
{
	static unsigned number;
	struct peer *p = calloc(1, sizeof(*p));
	size_t before = allocated();
	char name[16];

	if (p == NULL)
		return NULL;
	snprintf(name, sizeof(name), "bench%u", number++);
	p->ops = kinds + k;
	p->t = p->ops->make(p, name, n + n / 4 + 1000);
	if (p->t == NULL) {
		free(p);
		return NULL;
	}
	p->bytes = allocated() - before;
	return p;
}

void peer_free(struct peer *p)
{
	p->ops->free(p->t);
	free(p);
}

int peer_avx512(const struct peer *p) { return p->avx512; }
size_t peer_bytes(const struct peer *p) { return p->bytes; }
int peer_load(struct peer *p, const void *routes, size_t n) { return p->ops->load(p->t, routes, n); }
int peer_update(struct peer *p, const void *routes, size_t n) { return p->ops->update(p->t, routes, n); }
void peer_find(struct peer *p, const void *dst, uint16_t *out, size_t n) { p->ops->find(p->t, dst, out, n); }
void peer_pass(struct peer *p, const void *dst, size_t n) { p->ops->pass(p->t, dst, n); }
size_t peer_polluted(struct peer *p, const void *dst, uint64_t *words, size_t len, size_t at, uint64_t *ticks, size_t n)
{
	struct ring r = {words, len, at};

	p->ops->polluted(p->t, dst, &r, ticks, n);
	return r.at;
}
size_t peer_poll(struct peer *p, const void *dst, size_t n, const uint32_t *stop)
{
	return p->ops->poll(p->t, dst, n, stop);
}
int peer_add(struct peer *p, const void *routes, size_t n) { return lpm_add(p->t, routes, n); }
