package lunlease

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const (
	blockSize  = 4096
	sectorSize = 512
	version    = 1
	textAt     = 60
	maxText    = (sectorSize - textAt) / 2 // bytes of the host's name, and of its address
)

var (
	magic      = [8]byte{'V', 'M', 'D', 'K', 'L', 'E', 'A', 'S'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// state of the block.
type state uint32

const (
	unused   state = 0 // all zeros, as Format leaves it
	owned    state = 1
	released state = 2
	broken   state = 3 // of no version that is known, or its checksum is wrong
)

// Me is who wants to own a LUN.
type Me struct {
	Host    string `json:"host"`              // name of the host
	Address string `json:"address,omitempty"` // where others reach it, host:port
}

// Owner is what the block says.
type Owner struct {
	Me
	ID         string        `json:"id"`         // 32 hex digits, drawn by each Acquire: another boot, so to speak
	Generation uint64        `json:"generation"` // counts owners
	Beat       uint64        `json:"beat"`       // counts up once a Period while the owner lives
	Expiry     time.Duration `json:"expiry"`     // how long it may stand still
	Released   bool          `json:"released"`   // it was given back: nobody owns the LUN
}

// record is the block.
type record struct {
	state      state
	id         [16]byte
	generation uint64
	beat       uint64
	expiry     time.Duration
	me         Me
}

func (r *record) owner() Owner {
	return Owner{Me: r.me, ID: hex.EncodeToString(r.id[:]), Generation: r.generation, Beat: r.beat, Expiry: r.expiry, Released: r.state == released}
}

// whose says it in words.
func (r *record) whose() string {
	switch r.state {
	case owned:
		return r.me.Host + "'s"
	case released:
		return "free, as " + r.me.Host + " left it,"
	default:
		return "nobody's"
	}
}

func (r *record) encode() []byte {
	p := fsx.AlignedBuffer(blockSize)
	copy(p, magic[:])
	le.PutUint32(p[8:], version)
	copy(p[16:], r.id[:])
	le.PutUint64(p[32:], r.generation)
	le.PutUint64(p[40:], r.beat)
	le.PutUint32(p[48:], uint32(r.expiry/time.Millisecond))
	le.PutUint32(p[52:], uint32(r.state))
	le.PutUint16(p[56:], uint16(len(r.me.Host)))
	le.PutUint16(p[58:], uint16(len(r.me.Address)))
	n := copy(p[textAt:], r.me.Host)
	copy(p[textAt+n:], r.me.Address)
	le.PutUint32(p[12:], crc32.Checksum(p[:sectorSize], castagnoli))
	return p
}

// decode reads a block; one that makes no sense is broken. Kind: Unsupported (a newer program's).
func decode(p []byte) (record, error) {
	if [sectorSize]byte(p) == [sectorSize]byte{} {
		return record{}, nil
	}
	sector := [sectorSize]byte(p)
	clear(sector[12:16])
	if [8]byte(p) != magic || crc32.Checksum(sector[:], castagnoli) != le.Uint32(p[12:]) {
		return record{state: broken}, nil
	}
	if v := le.Uint32(p[8:]); v != version {
		return record{}, fault.New(fault.Unsupported, "Use a newer version of this program.", "the LUN's lease has format version %d, this program knows %d", v, version)
	}
	r := record{state: state(le.Uint32(p[52:])), id: [16]byte(p[16:32]), generation: le.Uint64(p[32:]), beat: le.Uint64(p[40:]),
		expiry: time.Duration(le.Uint32(p[48:])) * time.Millisecond}
	host, address := int(le.Uint16(p[56:])), int(le.Uint16(p[58:]))
	if r.state != owned && r.state != released || host > maxText || address > maxText {
		return record{state: broken}, nil
	}
	r.me = Me{Host: string(p[textAt:][:host]), Address: string(p[textAt+host:][:address])}
	return r, nil
}

// read reads the block; what it is and its first sector, by which a change is seen.
func read(lun fsx.File) (record, [sectorSize]byte, error) {
	p := fsx.AlignedBuffer(blockSize)
	if _, err := lun.ReadAt(p, store.LeaseAt); err != nil {
		return record{}, [sectorSize]byte{}, fault.Wrap(err, "read the LUN's lease")
	}
	r, err := decode(p)
	return r, [sectorSize]byte(p), err
}

// Peek tells who owns the LUN, or owned it last; whether it lives shows in its Beat after a while. Kinds: NotFound (nobody ever did),
// Damaged (the block makes no sense).
func Peek(lun fsx.File) (Owner, error) {
	switch r, _, err := read(lun); {
	case err != nil:
		return Owner{}, err
	case r.state == unused:
		return Owner{}, fault.New(fault.NotFound, "Start hostd with this LUN as a datastore.", "nobody has owned the LUN yet")
	case r.state == broken:
		return Owner{}, fault.New(fault.Damaged, "Whoever owns the LUN next writes it anew.", "the LUN's lease block makes no sense")
	default:
		return r.owner(), nil
	}
}

// Watch is Peek, and looks on until the owner is seen to live, which takes one of its Periods; alive is false if it is not in howLong,
// or if it released the LUN.
func Watch(ctx context.Context, lun fsx.File, howLong time.Duration) (o Owner, alive bool, err error) {
	if o, err = Peek(lun); err != nil || o.Released {
		return o, false, err
	}
	timer := time.NewTimer(howLong)
	defer timer.Stop()
	tick := time.NewTicker(max(min(howLong/10, time.Second/4), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return o, false, fault.Wrap(context.Cause(ctx), "watch the LUN's owner")
		case <-timer.C:
			return o, false, nil
		case <-tick.C:
		}
		switch now, err := Peek(lun); {
		case err != nil:
			return o, false, err
		case now != o:
			return now, !now.Released, nil
		}
	}
}
