package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Resolve finds the chain below a head by the parent hints, base first. It is for foreign disks; ours have a manifest. A
// hint is a path of another machine at times: only its last element counts, and the parent must lie in d.
func Resolve(d fsx.Dir, head string) ([]Ref, error) {
	return ResolveOn(d, head, nil)
}

// ResolveOn is Resolve for disks on devices; see vmdk.Options.
func ResolveOn(d fsx.Dir, head string, devices map[string]string) ([]Ref, error) {
	var refs []Ref
	seen := map[string]bool{}
	for name := head; ; {
		if seen[name] || len(refs) == MaxDepth {
			return refs, fault.New(fault.Damaged, "correct the parentFileNameHint of a link", "the chain of %s does not end: %s comes again, or there are more than %d links", head, name, MaxDepth)
		}
		seen[name] = true
		l, err := vmdk.Open(d, name, vmdk.Options{Devices: devices})
		if err != nil {
			return refs, err
		}
		desc := l.Descriptor()
		if err := l.Close(); err != nil {
			return refs, err
		}
		refs = slices.Insert(refs, 0, Ref{Name: name})
		if !desc.IsChild() {
			return refs, nil
		}
		hint := desc.ParentHint()
		parent := hint[strings.LastIndexAny(hint, `/\`)+1:]
		if _, err := d.Stat(parent); err != nil {
			if errors.Is(err, fs.ErrNotExist) || parent == "" {
				return refs, fault.New(fault.NotFound, "put the parent into the same directory", "%s needs its parent %q, which is not beside it", name, hint)
			}
			return refs, fault.Wrap(err, "parent %q of %s", parent, name)
		}
		name = parent
	}
}

// recommendedDepth is how many links VMware supports in one chain.
const recommendedDepth = 32

// Check examines every link of a chain and how they fit together. It changes nothing and takes no locks.
func Check(ctx context.Context, d fsx.Dir, refs []Ref) (vmdk.Report, error) {
	return CheckOn(ctx, d, refs, nil)
}

// CheckOn is Check for disks on devices; see vmdk.Options.
func CheckOn(ctx context.Context, d fsx.Dir, refs []Ref, devices map[string]string) (vmdk.Report, error) {
	var all vmdk.Report
	for _, r := range refs {
		one, err := vmdk.Check(ctx, d, r.Name)
		if err != nil {
			return all, err
		}
		for _, p := range one.Problems {
			all.Add(p)
		}
		all.Omitted += one.Omitted
		all.Allocated += one.Allocated
		all.Leaked += one.Leaked
	}
	if len(refs) > recommendedDepth {
		all.Add(vmdk.Problem{Code: vmdk.ChainDeep, Severity: vmdk.Warning, File: refs[len(refs)-1].Name,
			Message: fmt.Sprintf("the chain has %d links, VMware supports %d", len(refs), recommendedDepth), Remedy: "Consolidate the disk"})
	}
	return all, checkFit(d, refs, devices, &all)
}

// checkFit compares each link with its parent.
func checkFit(d fsx.Dir, refs []Ref, devices map[string]string, r *vmdk.Report) error {
	var below *vmdk.Info
	for _, ref := range refs {
		l, err := vmdk.Open(d, ref.Name, vmdk.Options{Devices: devices})
		if err != nil {
			below = nil
			continue // the link's own check has said why
		}
		info := l.Info()
		if err := l.Close(); err != nil {
			return err
		}
		add := func(code vmdk.Code, sev vmdk.Severity, remedy, format string, args ...any) {
			r.Add(vmdk.Problem{Code: code, Severity: sev, File: ref.Name, Remedy: remedy, Message: fmt.Sprintf(format, args...)})
		}
		switch {
		case below == nil && ref.Name == refs[0].Name && info.ParentCID != vmdk.NoParent:
			add(vmdk.ParentMissing, vmdk.Fatal, "Give the whole chain", "the link needs a parent (%q)", info.Parent)
		case below != nil && info.ParentCID != below.CID:
			add(vmdk.ParentModified, vmdk.Error, "Restore the parent; if its content is known to be right, run vmdkctl fix-cid",
				"the parent %s has content ID %s, the child was made of %s", below.Name, below.CID, info.ParentCID)
		}
		if below != nil && info.Capacity != below.Capacity && (ref.Size == 0 || info.Capacity < below.Capacity) {
			add(vmdk.LinkCapacities, vmdk.Error, "Only a growth that a manifest records may step up", "the link has %d bytes, its parent %d", info.Capacity, below.Capacity)
		}
		if below != nil && info.Parent[strings.LastIndexAny(info.Parent, `/\`)+1:] != below.Name {
			add(vmdk.ParentHintDiffers, vmdk.Note, "Programs that follow the hint look elsewhere", "the parent is %s, the hint says %q", below.Name, info.Parent)
		}
		below = info
	}
	return nil
}
