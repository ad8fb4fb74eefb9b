package packet

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe" // buffers by offset from base, inside what mustReserve reserved

	"millrace/internal/invariants"
	"millrace/internal/mem"
)

// space is the address space that indices can reach: 2^32 units of 64 bytes.
const space = 1 << 38

// base is the address of index 0. Index 0 itself is never a packet.
var (
	base     = mustReserve()
	pools    [64]*Pool // by number, see Mbuf.PoolAddr; written under poolsMu before any of its buffers is seen
	poolsMu  sync.Mutex
	nextFree = uintptr(mem.HugeSize) // offset from base of the first unused byte
	freed    []region                // of closed pools
)

type region struct{ off, size uintptr }

func mustReserve() unsafe.Pointer {
	p, err := mem.Reserve(space)
	if err != nil {
		panic("millrace needs 256 GiB of address space (no memory): raise `ulimit -v`: " + err.Error())
	}
	return p
}

// Base is the address that indices count from.
func Base() unsafe.Pointer { return base }

// Stride is the distance between two buffers. It is an odd multiple of 64, so
// that the headers of consecutive buffers fall into different cache sets: a
// stride of 4096 halves the road's speed, and 2048 costs a third.
const Stride = 2048 + 64

// DataRoom is the number of data bytes that one fresh buffer holds.
const DataRoom = Stride - DataStart

// ErrNoMemory is returned where the machine has no memory for a pool.
var ErrNoMemory = errors.New("packet: no memory for the pool")

// blockSize is how many indices a cache exchanges with its pool at once.
const blockSize = 128

// Pool is a set of equal buffers. All methods are safe for concurrent use.
type Pool struct {
	name  string
	num   uintptr
	mem   []byte
	pages mem.Pages
	n     int
	first uint32

	blocks []block
	_      [64]byte
	full   blockStack // blocks that hold indices
	_      [48]byte
	empty  blockStack
	_      [48]byte

	rest   sync.Mutex // guards odd: what caches left behind that is less than a block
	odd    []uint32
	counts []cacheCount // behind the buffers, outside the Go heap
	caches []*Cache     // by number; nil where closed
}

// cacheCount is a cache's fill, written by its thread and read by any.
type cacheCount struct {
	n uint32
	_ [60]byte
}

// maxCaches bounds the caches of one pool: one for each thread that moves packets.
const maxCaches = 256

type block struct {
	next atomic.Uint32 // in its stack: number+1 of the block below, 0 at the bottom
	idx  [blockSize]uint32
}

// blockStack is a lock-free stack of blocks (Treiber's): a thread that stops in the middle
// keeps its own block from the others and nothing else. What was freed
// last is given out first.
type blockStack struct {
	top atomic.Uint64 // changes<<32 | number+1 of the uppermost block
	n   atomic.Int64
}

func (s *blockStack) push(blocks []block, b uint32) {
	for {
		old := s.top.Load()
		blocks[b].next.Store(uint32(old))
		if s.top.CompareAndSwap(old, (old>>32+1)<<32|uint64(b+1)) {
			s.n.Add(1)
			return
		}
	}
}

func (s *blockStack) pop(blocks []block) (uint32, bool) {
	for {
		old := s.top.Load()
		b := uint32(old) - 1
		if b == ^uint32(0) {
			return 0, false
		}
		if s.top.CompareAndSwap(old, (old>>32+1)<<32|uint64(blocks[b].next.Load())) {
			s.n.Add(-1)
			return b, true
		}
	}
}

// NewPool maps n buffers, rounded up to a multiple of 128.
func NewPool(name string, n int) (*Pool, error) {
	n = (n + blockSize - 1) / blockSize * blockSize
	if n == 0 {
		return nil, fmt.Errorf("packet: pool %s: no buffers asked for", name)
	}
	poolsMu.Lock()
	defer poolsMu.Unlock()
	num := 0
	for num < len(pools) && pools[num] != nil {
		num++
	}
	if num == len(pools) {
		return nil, fmt.Errorf("packet: pool %s: more than %d pools", name, len(pools))
	}
	counts := uintptr(n) * Stride
	size := (counts + maxCaches*unsafe.Sizeof(cacheCount{}) + mem.HugeSize - 1) &^ (mem.HugeSize - 1)
	off, ok := takeRegion(size)
	if !ok {
		return nil, fmt.Errorf("%w: %s: %d buffers", ErrNoMemory, name, n)
	}
	b, pages, err := mem.MapAt(unsafe.Add(base, off), int(size))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNoMemory, name, err)
	}
	p := &Pool{name: name, num: uintptr(num), mem: b, pages: pages, n: n, first: uint32(off >> 6)}
	p.counts = unsafe.Slice((*cacheCount)(unsafe.Add(base, off+counts)), maxCaches)
	p.blocks, p.odd = make([]block, n/blockSize), make([]uint32, 0, n)
	for i := range p.blocks {
		p.empty.push(p.blocks, uint32(i))
	}
	var blk [blockSize]uint32
	for i := 0; i < n; i += blockSize {
		for j := range blk {
			blk[j] = p.first + uint32(i+j)*(Stride>>6)
			p.format(At(blk[j]))
		}
		p.put(&blk)
	}
	pools[num] = p
	return p, nil
}

func takeRegion(size uintptr) (uintptr, bool) {
	for i, r := range freed {
		if r.size == size {
			freed = append(freed[:i], freed[i+1:]...)
			return r.off, true
		}
	}
	off := nextFree
	if off+size > space {
		return 0, false
	}
	nextFree += size
	return off, true
}

// format gives a buffer the fields that never change, and those of a free one.
func (p *Pool) format(m *Mbuf) {
	*m = Mbuf{
		BufAddr: uintptr(unsafe.Pointer(m)) + HeaderSize, BufLen: Stride - HeaderSize,
		DataOff: Headroom, RefCnt: 1, NbSegs: 1, PoolAddr: p.num,
	}
}

// Close unmaps the pool. Every cache must be closed, and every packet gone.
func (p *Pool) Close() error {
	poolsMu.Lock()
	defer poolsMu.Unlock()
	pools[p.num] = nil
	off := uintptr(p.first) << 6
	at := unsafe.Add(base, off)
	size := uintptr(len(p.mem))
	if err := mem.Release(at, int(size)); err != nil {
		return err
	}
	p.mem = nil
	freed = append(freed, region{off, size})
	return nil
}

// Name is the name given at creation.
func (p *Pool) Name() string { return p.name }

// Size is the number of buffers, free or not.
func (p *Pool) Size() int { return p.n }

// Pages says what kind of pages the buffers lie in.
func (p *Pool) Pages() mem.Pages { return p.pages }

// Memory is the pool's whole mapping, for drivers that register it with the
// kernel or a peer. Buffer i of the pool starts at byte i*Stride.
func (p *Pool) Memory() []byte { return p.mem }

// First is the index of the pool's first buffer; buffer k has First()+k*Stride/64.
func (p *Pool) First() uint32 { return p.first }

// Contains reports whether the index is one of the pool's buffers.
func (p *Pool) Contains(i uint32) bool {
	d := i - p.first
	return d < uint32(p.n)*(Stride>>6) && d%(Stride>>6) == 0
}

// FromOffset is the buffer that holds the byte at offset off of Memory.
func (p *Pool) FromOffset(off uint64) uint32 {
	return p.first + uint32(off/Stride)*(Stride>>6)
}

// Free is the number of free buffers, including those in caches. It is exact
// only while no cache is being used.
func (p *Pool) Free() int {
	n := int(p.full.n.Load()) * blockSize
	p.rest.Lock()
	defer p.rest.Unlock()
	n += len(p.odd)
	for i := range p.caches {
		n += int(p.counts[i].n)
	}
	return n
}

// put and get move one block's indices; put is false where the pool has all it ever had.
func (p *Pool) put(idx *[blockSize]uint32) bool {
	b, ok := p.empty.pop(p.blocks)
	if !ok {
		return false
	}
	p.blocks[b].idx = *idx
	p.full.push(p.blocks, b)
	return true
}

func (p *Pool) get(idx *[blockSize]uint32) bool {
	b, ok := p.full.pop(p.blocks)
	if !ok {
		return p.getOdd(idx)
	}
	*idx = p.blocks[b].idx
	p.empty.push(p.blocks, b)
	return true
}

// getOdd makes a block of what closed caches left.
func (p *Pool) getOdd(b *[blockSize]uint32) bool {
	if !p.rest.TryLock() {
		return false
	}
	defer p.rest.Unlock()
	if len(p.odd) < blockSize {
		return false
	}
	copy(b[:], p.odd[len(p.odd)-blockSize:])
	p.odd = p.odd[:len(p.odd)-blockSize]
	return true
}

// Cache is one thread's stock of a pool's free buffers, a stack: what was freed
// last, and is warm, is given out first.
type Cache struct {
	pool  *Pool
	n     *uint32
	stack [4 * blockSize]uint32
}

// NewCache returns an empty cache for the calling thread's use.
func (p *Pool) NewCache() *Cache {
	p.rest.Lock()
	defer p.rest.Unlock()
	i := 0
	for i < len(p.caches) && p.caches[i] != nil {
		i++
	}
	if i == maxCaches {
		panic(fmt.Sprintf("packet: pool %s: more than %d caches open", p.name, maxCaches))
	}
	c := &Cache{pool: p, n: &p.counts[i].n}
	if i == len(p.caches) {
		p.caches = append(p.caches, nil)
	}
	p.caches[i] = c
	return c
}

// Pool is the pool that the cache draws on.
func (c *Cache) Pool() *Pool { return c.pool }

// Close gives all buffers back to the pool.
func (c *Cache) Close() {
	p := c.pool
	var b [blockSize]uint32
	n := int(*c.n)
	for n >= blockSize {
		copy(b[:], c.stack[n-blockSize:n])
		if !p.put(&b) {
			panic(p.tooMany())
		}
		n -= blockSize
	}
	p.rest.Lock()
	p.odd = append(p.odd, c.stack[:n]...)
	for i, x := range p.caches {
		if x == c {
			p.caches[i] = nil
		}
	}
	*c.n = 0
	p.rest.Unlock()
}

// Alloc fills dst with fresh single-segment buffers without data (DataOff
// Headroom, lengths 0) and returns how many there were: fewer than asked only
// where the pool is empty.
func (c *Cache) Alloc(dst []uint32) int {
	n := c.AllocRaw(dst)
	for _, i := range dst[:n] {
		m := At(i)
		if invariants.Enabled {
			m.checkFree()
		}
		m.DataOff, m.PktLen, m.DataLen, m.OlFlags = Headroom, 0, 0, 0
	}
	return n
}

// Alloc1 is Alloc for one buffer; nil where the pool is empty.
func (c *Cache) Alloc1() *Mbuf {
	var b [1]uint32
	if c.Alloc(b[:]) == 0 {
		return nil
	}
	return At(b[0])
}

// AllocRaw is Alloc without touching the buffers, for drivers that hand empty
// buffers to hardware or to the kernel and set every field on reception.
func (c *Cache) AllocRaw(dst []uint32) int {
	n := 0
	for n < len(dst) {
		if *c.n == 0 && !c.refill() {
			break
		}
		have := int(*c.n)
		k := min(have, len(dst)-n)
		copy(dst[n:n+k], c.stack[have-k:have])
		*c.n = uint32(have - k)
		n += k
	}
	return n
}

func (c *Cache) refill() bool {
	if !c.pool.get((*[blockSize]uint32)(c.stack[:blockSize])) {
		return false
	}
	*c.n = blockSize
	return true
}

func (p *Pool) tooMany() string {
	return "packet: more buffers freed than the pool " + p.name + " has"
}

// FreeRaw puts back buffers that AllocRaw gave and that were never filled.
func (c *Cache) FreeRaw(src []uint32) {
	for _, i := range src {
		if invariants.Enabled { // something may have been received into it
			At(i).PktLen = 0
		}
		c.push(i)
	}
}

func (c *Cache) push(i uint32) {
	n := *c.n
	if n == uint32(len(c.stack)) {
		// The older half goes back, the warm half stays.
		c.spill()
		n = *c.n
	}
	c.stack[n&(uint32(len(c.stack))-1)] = i
	*c.n = n + 1
}

func (c *Cache) spill() {
	for k := 0; k < 2; k++ {
		if !c.pool.put((*[blockSize]uint32)(c.stack[k*blockSize:])) {
			panic(c.pool.tooMany())
		}
	}
	copy(c.stack[:], c.stack[2*blockSize:])
	*c.n = 2 * blockSize
}

// Free ends packets: every segment loses one owner, and buffers without any
// return to their pool. Buffers of other pools of the process return to theirs.
func (c *Cache) Free(src []uint32) {
	for _, i := range src {
		m := At(i)
		if m.RefCnt == 1 && m.Next == 0 && m.OlFlags&FlagIndirect == 0 && m.PoolAddr == c.pool.num {
			if invariants.Enabled {
				m.mangle()
			}
			m.NbSegs = 1
			c.push(i)
			continue
		}
		c.freeChain(m)
	}
}

// Free1 is Free for one packet.
func (c *Cache) Free1(m *Mbuf) {
	b := [1]uint32{m.Index()}
	c.Free(b[:])
}

func (c *Cache) freeChain(m *Mbuf) {
	for m != nil {
		next := m.NextSeg()
		c.freeSeg(m)
		m = next
	}
}

// freeSeg drops one owner of a segment.
func (c *Cache) freeSeg(m *Mbuf) {
	if !m.unref() {
		return
	}
	m.Next, m.NbSegs = 0, 1
	if m.OlFlags&FlagIndirect != 0 {
		direct := (*Mbuf)(unsafe.Add(base, m.Shinfo-uintptr(base)))
		m.detach()
		c.freeSeg(direct)
	}
	if invariants.Enabled {
		m.mangle()
	}
	if m.PoolAddr == c.pool.num {
		c.push(m.Index())
		return
	}
	p := pools[m.PoolAddr&63]
	p.rest.Lock()
	p.odd = append(p.odd, m.Index())
	p.rest.Unlock()
}

// detach gives an indirect buffer its own data room back.
func (m *Mbuf) detach() {
	m.BufAddr, m.BufLen, m.DataOff = uintptr(unsafe.Pointer(m))+HeaderSize, Stride-HeaderSize, Headroom
	m.OlFlags &^= FlagIndirect
	m.Shinfo = 0
}

// Detach makes an indirect segment a direct, empty one again and returns the buffer that
// it borrowed, whose reference is the caller's now: for drivers that send a clone's data
// and need its header no longer. The segment must have one owner.
func (m *Mbuf) Detach() *Mbuf {
	d := m.Direct()
	m.detach()
	m.DataLen = 0
	return d
}

// FreeSegs ends the single segments of src, whatever chain links they carry:
// for drivers that transmit and complete segment by segment.
func (c *Cache) FreeSegs(src []uint32) {
	for _, i := range src {
		c.freeSeg(At(i))
	}
}

// Clone returns a packet that shares all data of m without copying it: one new
// header for each segment, borrowing the segment's buffer. The caller owns
// the clone; m stays its owner's. nil where the pool has too few buffers.
func (c *Cache) Clone(m *Mbuf) *Mbuf { return c.CloneRange(m, 0, int(m.PktLen)) }

// CloneRange is Clone of the n bytes from offset off on, which must lie within
// the packet.
func (c *Cache) CloneRange(m *Mbuf, off, n int) *Mbuf {
	var head, tail *Mbuf
	port, typ, rss, total := m.Port, m.Type, m.RSS, n
	segs := uint16(0)
	for ; m != nil && (n > 0 || head == nil); m = m.NextSeg() {
		if off >= int(m.DataLen) && n > 0 {
			off -= int(m.DataLen)
			continue
		}
		s := c.Alloc1()
		if s == nil {
			if head != nil {
				c.freeChain(head)
			}
			return nil
		}
		off = min(off, int(m.DataLen)) // beyond it where nothing is asked for
		k := min(int(m.DataLen)-off, n)
		s.attach(m, off, k)
		if head == nil {
			head = s
		} else {
			tail.SetNext(s)
		}
		tail = s
		segs++
		n -= k
		off = 0
	}
	head.NbSegs, head.PktLen, head.Port, head.Type, head.RSS = segs, uint32(total), port, typ, rss
	return head
}

// attach makes s an indirect view of k bytes of m's data.
func (s *Mbuf) attach(m *Mbuf, off, k int) {
	m.Direct().ref()
	s.borrow(m, off, k)
}

// borrow is attach where the owner is counted already.
func (s *Mbuf) borrow(m *Mbuf, off, k int) {
	s.BufAddr, s.BufLen = m.BufAddr, m.BufLen
	s.DataOff, s.DataLen = m.DataOff+uint16(off), uint16(k)
	s.OlFlags |= FlagIndirect
	s.Shinfo = uintptr(unsafe.Pointer(m.Direct()))
}

// Direct is the buffer whose memory holds the segment's data: the segment itself,
// or the one it borrows from.
func (m *Mbuf) Direct() *Mbuf {
	if m.OlFlags&FlagIndirect == 0 {
		return m
	}
	return (*Mbuf)(unsafe.Add(base, m.Shinfo-uintptr(base)))
}

// refWord is the 32-bit word that holds RefCnt in its upper half: Go has no
// 16-bit atomics. The lower half is DataOff, which only the owner writes, and
// only while it is the one owner.
func (m *Mbuf) refWord() *uint32 { return (*uint32)(unsafe.Pointer(&m.DataOff)) }

func (m *Mbuf) ref() { atomic.AddUint32(m.refWord(), 1<<16) }

// unref reports whether the last owner is gone; RefCnt is 1 again then.
func (m *Mbuf) unref() bool {
	if m.RefCnt == 1 {
		return true
	}
	if atomic.AddUint32(m.refWord(), ^uint32(1<<16-1))>>16 == 0 {
		m.RefCnt = 1
		return true
	}
	return false
}

// poison fills freed buffers.
const poison = 0xdf

// mangle destroys a freed buffer's contents, so that use after free shows.
func (m *Mbuf) mangle() {
	if m.RefCnt != 1 || m.Next != 0 {
		panic("packet: freed buffer is still referenced or linked")
	}
	b := m.room()
	for i := range b {
		b[i] = poison
	}
	m.PktLen, m.DataLen, m.DataOff = poison*0x01010101, poison*0x0101, poison*0x0101
}

// checkFree verifies that nobody wrote to the buffer while it was free.
func (m *Mbuf) checkFree() {
	if m.RefCnt != 1 || m.NbSegs != 1 || m.Next != 0 || m.OlFlags&FlagIndirect != 0 {
		panic("packet: a buffer was changed while it was free")
	}
	if m.PktLen != poison*0x01010101 {
		return
	}
	for _, x := range m.room() {
		if x != poison {
			panic("packet: data was written to a buffer while it was free")
		}
	}
}

// room is the buffer's own memory, headroom included.
func (m *Mbuf) room() []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(m), HeaderSize)), Stride-HeaderSize)
}
