package cli

import (
	"runtime"
	"runtime/debug"
)

// Version is what a program was built from.
type Version struct {
	Version  string `json:"version"`            // module version, "(devel)" for a build from a tree
	Revision string `json:"revision,omitempty"` // commit, with "+changes" if the tree had any
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// BuildVersion reads it from the running program.
func BuildVersion() Version {
	v := Version{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" && v.Revision != "" {
				v.Revision += "+changes"
			}
		}
	}
	return v
}
