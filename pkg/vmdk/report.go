package vmdk

import (
	"encoding/json"
	"fmt"
)

// Severity is how bad a problem is.
type Severity int

// Severities, worst last.
const (
	Note    Severity = iota // nothing is wrong for any reader
	Warning                 // readable; some program may object
	Error                   // some guest data may be wrong or unreadable
	Fatal                   // the link cannot be opened
)

func (s Severity) String() string { return [...]string{"note", "warning", "error", "fatal"}[s] }

// MarshalJSON writes the word.
func (s Severity) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// Code names a kind of problem for programs. The texts never change.
type Code string

// What Check finds.
const (
	TableCopiesDiffer   Code = "table-copies-differ"     // grain table and redundant table disagree
	GrainShared         Code = "grain-shared"            // two entries name the same sectors
	GrainInMetadata     Code = "grain-in-metadata"       // an entry points into header, descriptor or tables
	GrainUnaligned      Code = "grain-unaligned"         // readable, but not where VMware puts it
	GrainCutOff         Code = "grain-cut-off"           // the file ends inside a grain
	GrainBeyondEnd      Code = "grain-beyond-end"        // an entry points behind the file
	GrainBeyondCapacity Code = "grain-beyond-capacity"   // an entry for guest sectors that do not exist
	DirectoryBeyondEnd  Code = "directory-beyond-end"    // a grain directory lies outside the file
	DirectoryTooLong    Code = "directory-too-long"      // it would fill the memory
	FileTooLong         Code = "file-too-long"           // longer than table entries reach
	TableBeyondEnd      Code = "table-beyond-end"        // a grain table lies outside the file
	MetadataOverlaps    Code = "metadata-overlaps"       // directories and tables lie on each other
	FreeSectorLow       Code = "free-sector-low"         // COWD: the next write would overwrite data
	StreamGrainDamaged  Code = "stream-grain-damaged"    // a compressed grain cannot be read
	StreamTablesDiffer  Code = "stream-tables-differ"    // a compressed grain is not where its table says
	StreamFooterDamaged Code = "stream-footer-damaged"   // no footer, or another one than the header
	StreamEndMissing    Code = "stream-end-missing"      // no end marker
	JournalPending      Code = "journal-pending"         // SESparse: tables are right only with the journal
	FreeTableLow        Code = "free-table-low"          // SESparse: the next new table would overwrite one
	EntryUnknown        Code = "entry-unknown"           // SESparse: it means nothing
	BitmapDiffers       Code = "bitmap-differs"          // SESparse: a grain in use is free for writers
	BackmapDiffers      Code = "backmap-differs"         // SESparse: not the inverse of the tables
	UncleanShutdown     Code = "unclean-shutdown"        // the last writer did not close
	TextTransfer        Code = "text-mode-transfer"      // line-end bytes were converted
	UnknownFlags        Code = "unknown-flags"           // incompatible flags nobody knows
	BadGrainSize        Code = "bad-grain-size"          //
	BadTableSize        Code = "bad-table-size"          //
	BadVersion          Code = "bad-version"             //
	BadCapacity         Code = "bad-capacity"            //
	BadOverhead         Code = "bad-overhead"            //
	Compressed          Code = "compressed"              // not a defect, but not handled
	DescriptorBeyondEnd Code = "descriptor-beyond-end"   //
	DescriptorDamaged   Code = "descriptor-damaged"      //
	ContentIDsDiffer    Code = "content-ids-differ"      // CID is not the low half of longContentID
	CapacityDiffers     Code = "capacity-differs"        // descriptor line and header disagree
	ExtentMissing       Code = "extent-missing"          //
	ExtentShort         Code = "extent-short"            //
	ExtentDamaged       Code = "extent-damaged"          // its header cannot be read
	GrainsLeaked        Code = "grains-leaked"           // space that no entry names
	ZeroEntryNoFlag     Code = "zero-entry-without-flag" // entry 1 in an extent that does not use it
	TablesMissing       Code = "tables-missing"          // directory entry 0
	ParentModified      Code = "parent-modified"         // parentCID is not the parent's CID
	LinkCapacities      Code = "link-capacities-differ"  // links of a chain differ in size
	NotOpenable         Code = "not-openable"            // valid, but not handled
	DeviceExtent        Code = "device-extent"           // not looked at
	ChainDeep           Code = "chain-deep"              // more links than VMware supports
	ParentMissing       Code = "parent-missing"          //
	ParentHintDiffers   Code = "parent-hint-differs"     //
)

// Problem is one finding.
type Problem struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// File is the extent or descriptor.
	File string `json:"file"`
	// Off and Len are the guest bytes concerned; Len 0: none in particular.
	Off     int64  `json:"offset,omitempty"`
	Len     int64  `json:"length,omitempty"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

func (p Problem) String() string {
	s := fmt.Sprintf("%s: %s: %s", p.Severity, p.File, p.Message)
	if p.Len > 0 {
		s += fmt.Sprintf(" [guest bytes %d..%d]", p.Off, p.Off+p.Len-1)
	}
	if p.Remedy != "" {
		s += ". " + p.Remedy
	}
	return s
}

// Report is what Check found, and what there is.
type Report struct {
	Problems []Problem `json:"problems"`
	// Omitted is how many problems were found beyond the ones listed.
	Omitted int `json:"omitted,omitempty"`
	// Allocated and Leaked are bytes of grains in the files, named by a table and not.
	Allocated int64 `json:"allocated"`
	Leaked    int64 `json:"leaked"`
}

// Worst is the highest severity; ok is false if there are no problems.
func (r *Report) Worst() (worst Severity, ok bool) {
	for _, p := range r.Problems {
		worst = max(worst, p.Severity)
	}
	return worst, len(r.Problems) > 0
}

// Sound tells that no problem is an Error or worse.
func (r *Report) Sound() bool {
	w, _ := r.Worst()
	return w < Error
}

const maxProblems = 1000

// Add appends a problem, up to a bound.
func (r *Report) Add(p Problem) {
	if len(r.Problems) >= maxProblems && p.Severity < Fatal {
		r.Omitted++
		return
	}
	r.Problems = append(r.Problems, p)
}
